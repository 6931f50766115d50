"""Runs cases in this process: `python -m tests.sanitizers.run (kernels|torch) LIBRARY [case …]`.

kernels: a library with the entry points of tests/emulation/kernels.cpp. torch: one that registers its
kernels with torch's dispatcher. Without names, all cases. Under a sanitizer (see build.command) the
process ends at the first fault.
"""

import contextlib
import ctypes
import sys

import torch


def context(kind, library):
    """Within it, the ops on backend "cpu" are those of the library."""
    if kind == "torch":
        load = torch.ops.load_library
        torch.ops.load_library = lambda path: load(library)  # when flowkern is imported
        return contextlib.nullcontext()
    from tests.emulation import device

    return device.emulated(lambda: device.load(library))


def check(case):
    from tests import cases, masked_autoregressive_cases, probability_path_cases

    for dtype in (torch.float32, torch.float64):
        if isinstance(case, probability_path_cases.Case):
            probability_path_cases.check(case, "cpu", dtype)
            continue
        masked = isinstance(case, masked_autoregressive_cases.Case)
        for inverse in (False, True):
            (masked_autoregressive_cases if masked else cases).check(case, "cpu", dtype, inverse=inverse)


def main(kind, library, *names):
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with context(kind, library):
        from tests.emulation.test_kernels import CASES, EDGES, MASKED, PATHS

        every = CASES | EDGES | PATHS
        if kind == "torch" or hasattr(ctypes.CDLL(library), "masked_autoregressive"):  # no loop of its own
            every |= MASKED
        chosen = names or [*every]
        for name in chosen:
            check(every[name])
    print(f"{len(chosen)} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs cases in this process: `python -m tests.sanitizers.run (cuda|cpu|threads) [case …]`.

Meant for a process that began with a sanitizer (see build.command), which ends it at the first fault.
cuda: the emulated CUDA kernels. cpu: the CPU kernels with their torch side. threads: the CPU loops,
several threads to a call. Without names, all cases.
"""

import contextlib
import functools
import sys

import torch

from tests.sanitizers import build


def load_sanitized():
    """flowkern, when it is imported, loads the CPU kernels that are built with sanitizers."""
    load, library = torch.ops.load_library, build.address_library()
    torch.ops.load_library = lambda path: load(library)


def context(backend):
    """Within it, the ops on backend "cpu" are those to be tested."""
    from tests.emulation import device

    if backend == "cuda":
        return device.emulated()
    if backend == "threads":
        library = functools.partial(device.load, build.thread_library())
        return device.emulated(library)
    return contextlib.nullcontext()


def main(backend, *names):
    if backend == "cpu":
        load_sanitized()
    from tests import cases
    from tests.emulation.test_kernels import CASES, EDGES

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    chosen = names or [*CASES, *EDGES]
    with context(backend):
        for name in chosen:
            for dtype in (torch.float32, torch.float64):
                for inverse in (False, True):
                    cases.check((CASES | EDGES)[name], "cpu", dtype, inverse=inverse)
    print(f"{len(chosen)} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])

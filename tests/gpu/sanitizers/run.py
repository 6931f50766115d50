"""Runs cases in this process: `python -m tests.gpu.sanitizers.run (emulated|cpu|triton) LIBRARY [case …]`.

emulated: a library of the CUDA kernels, see tests/gpu/emulation. cpu: one that registers its kernels with
torch's dispatcher. triton: what is interpreted; the library is not looked at. Without names, all cases.
Under a sanitizer (see build.command) the process ends at the first fault.
"""

import contextlib
import itertools
import sys

import torch

from tests import cases


def context(kind, library):
    """Within it, the ops run on the kernels that are meant, and what nobody has written is NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if kind == "cpu":
        assert "flowkern" not in sys.modules, "it has loaded its own library"
        load = torch.ops.load_library
        torch.ops.load_library = lambda path: load(library)  # when flowkern is imported
        return contextlib.nullcontext()
    if kind == "triton":
        from tests.ops import triton_memory

        return triton_memory.checked()
    from tests.gpu.emulation import device
    from tests.gpu.emulation.library import load

    return device.emulated(lambda: load(library))


def ops(kind):
    """Those that have kernels of this kind."""
    return [*cases.modules("emulated")] if kind == "emulated" else [op for op in cases.OPS if kind in cases.kernels(op)]


def named(kind):
    """{name: case} of all cases of the ops that have kernels of this kind."""
    if kind == "emulated":
        return cases.labelled({op: module.CASES for op, module in cases.modules("emulated").items()})
    every = cases.modules()
    return cases.labelled({op: every[op].CASES | getattr(every[op], "EDGES", {}) for op in ops(kind)})


def check(case, kind):
    """In both directions where there are two."""
    backend = "triton" if kind == "triton" else "cpu"
    for dtype, directed in itertools.product((torch.float32, torch.float64), cases.directions(case)):
        cases.of(case).check(case, backend, dtype, **directed)


def main(kind, library, *names):
    with context(kind, library):
        every = named(kind)
        chosen = names or [*every]
        for name in chosen:
            check(every[name], kind)
    print(f"{len(chosen)} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs cases in this process: `python -m tests.gpu.sanitizers.run (emulated|cpu|triton) LIBRARY [case …]`.

emulated: a library of the CUDA kernels, see tests/gpu/emulation. cpu: one that registers its kernels with
torch's dispatcher. triton: what is interpreted; the library is not looked at. Without names, all cases.
Under a sanitizer (see build.command) the process ends at the first fault.
"""

import contextlib
import inspect
import sys

import torch


def context(kind, library):
    """Within it, the ops run on the kernels that are meant, and what nobody has written is NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if kind == "cpu":
        load = torch.ops.load_library
        torch.ops.load_library = lambda path: load(library)  # when flowkern is imported
        return contextlib.nullcontext()
    if kind == "triton":
        from tests.ops import triton_memory

        return triton_memory.checked()
    from tests.gpu.emulation import device

    return device.emulated(lambda: device.load(library))


def named(kind):
    """{name: case} of all cases of the ops that have kernels of this kind."""
    from tests.cases import flow_program as flow_program_cases
    from tests.cases import masked_autoregressive as masked_autoregressive_cases
    from tests.cases import neural_ode as neural_ode_cases
    from tests.cases import runge_kutta_stage as runge_kutta_stage_cases
    from tests.gpu.emulation.test_kernels import CASES, EDGES, MASKED, PATHS, SOLVES, STAGES

    every = CASES | EDGES | PATHS
    if kind == "emulated":
        return every | MASKED | SOLVES | STAGES
    modules = {"masked": masked_autoregressive_cases, "ode": neural_ode_cases, "stage": runge_kutta_stage_cases}
    modules |= {"flow": flow_program_cases} if kind == "cpu" else {}
    for op, module in modules.items():
        every |= {f"{op}-{name}": case for name, case in module.CASES.items()}
    return every


def check(case, kind):
    """By the module that the case is of, in both directions where it has two."""
    backend = "triton" if kind == "triton" else "cpu"
    module = sys.modules[type(case).__module__]
    both = "inverse" in inspect.signature(module.check).parameters
    for dtype in (torch.float32, torch.float64):
        for options in ({"inverse": False}, {"inverse": True}) if both else ({},):
            module.check(case, backend, dtype, **options)


def main(kind, library, *names):
    with context(kind, library):
        every = named(kind)
        chosen = names or [*every]
        for name in chosen:
            check(every[name], kind)
    print(f"{len(chosen)} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])

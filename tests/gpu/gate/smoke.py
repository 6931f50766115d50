"""One odd and one large case of each op, direction and dtype, on both backends: CUDA first."""

import itertools

from tests.gpu.gate import Item, correctness
from tests.gpu.gate.gate import BACKENDS

SECONDS = 1.5
# Triton compiles kernels for each direction and dtype; of these it takes float32 alone.
COMPILATION = {"affine_coupling": 8, "rational_quadratic_spline": 10, "masked_autoregressive": 11, "neural_ode": 13}
FLOAT32_ALONE = ("masked_autoregressive", "neural_ode")


def items(gate):
    """An op's `smoke` has a list of checks for each direction."""
    found = []
    for backend, op in itertools.product(BACKENDS, correctness.OPS):
        seconds = SECONDS + (COMPILATION.get(op, 4) if backend == "triton" else 0)
        for number, checks in enumerate(correctness.MODULES[op].smoke(gate)):
            if backend == "triton" and op in FLOAT32_ALONE:
                checks = [check for check in checks if check.dtype == "float32"]
            name = f"{backend}/{op}/{number}"
            found.append(Item(name, seconds, _run(checks, backend, gate, name, seconds)))
    return found


def _run(checks, backend, gate, name, seconds):
    return lambda: correctness.run_checks(checks, backend, gate, name, seconds, "smoke")


def section(results):
    return "Smoke", correctness.section(results)[1]

"""Launches of every variant of the op's Triton kernels: (name, launcher, its arguments)."""

import torch

from flowkern.ops._neural_ode import METHODS
from flowkern.ops._neural_ode import triton as solver
from tests.gpu.compiled.meta import ROWS

# (hidden layers, directions or 0 for a closed trace, numbers in φ(t), row_bias, kinetic, adjoint, dtype);
# None: no trace
SOLVES = [
    ((64, 64), 0, 1, False, False, False, torch.float32),
    ((32, 32, 32), 1, 6, True, True, True, torch.float32),
    ((64,), None, 0, False, False, False, torch.float64),
]


def _field(hidden, directions, phi, row_bias, kinetic, dtype, features=8, steps=16):
    """What the solve takes."""

    def empty(*shape):
        return torch.empty(*shape, dtype=dtype, device="meta")

    units, table = (features, *hidden, features), METHODS["rk4"]
    tensors = [empty(o, i) for i, o in zip(units, units[1:])] + [empty(o) for o in units[1:]]
    closed = empty(*hidden[::-1]) if directions == 0 else None
    noise = empty(directions, ROWS, features) if directions else None
    inputs = (
        empty(ROWS, features), empty(1), empty(1), empty(ROWS, hidden[0]) if row_bias else None,
        empty(hidden[0], phi) if phi else None, empty(phi // 2) if phi > 1 else None, closed, noise, tensors,
    )  # fmt: skip
    codes = [2] * len(hidden), [1.0] * len(hidden)
    return *inputs, *codes, *table, steps, 1, 1.0, kinetic, bool(directions)


def launches():
    for hidden, directions, phi, row_bias, kinetic, adjoint, dtype in SOLVES:
        arguments = _field(hidden, directions, phi, row_bias, kinetic, dtype)
        ends, sums, kept = solver.native.outputs(*arguments[:2], 16, 1)
        trace = "" if directions is None else ", directions" if directions else ", closed"
        name = f"{len(hidden)} layers of {hidden[0]}{trace}, {dtype}" + ", row_bias" * row_bias
        yield f"forward, {name}", solver._launch_forward, arguments
        name += ", adjoint" * adjoint
        yield f"backward, {name}", solver._launch_backward, (ends, sums, ends, kept, adjoint, *arguments)

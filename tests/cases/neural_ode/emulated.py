"""The dispatcher ops by the CUDA kernels in the emulation (emulated.cpp)."""

import ctypes
from dataclasses import replace

import torch

from flowkern.ops._neural_ode import native
from tests.cases.neural_ode import CASES as NAMED
from tests.cases.neural_ode import Case
from tests.gpu.emulation.library import Tensor, run

_SOLVE_SIZES = ("rows", "features", "layers", "stages", "intervals", "steps", "every", "directions")
_SOLVE_GRADS = (
    "grad_y", "grad_starts", "grad_sizes", "grad_row_bias", "grad_time", "grad_frequencies", "grad_closed"
)  # fmt: skip
_SOLVE_TENSORS = (
    "y", "starts", "sizes", "row_bias", "time", "frequencies", "closed", "epsilon", "ends", "sums", "kept",
    "grad_ends", "grad_sums", *_SOLVE_GRADS,
)  # fmt: skip
_LAYERS = 25  # the most, as emulated.cpp has it


class _SolveCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SOLVE_SIZES, "kinetic", "jacobian", "adjoint", "backward")),
        *((name, ctypes.c_int64 * _LAYERS) for name in ("units", "activations")),
        ("weight", ctypes.c_double),
        ("slopes", ctypes.c_double * _LAYERS),
        ("a", ctypes.c_double * 28),
        ("b", ctypes.c_double * 8),
        ("c", ctypes.c_double * 8),
        *((name, Tensor) for name in _SOLVE_TENSORS),
        *((name, Tensor * _LAYERS) for name in ("weights", "biases", "grad_weights", "grad_biases")),
    ]


def _solve(*arguments):
    inputs, spec = arguments[:9], arguments[9:]
    ends, sums, kept = native.outputs(*inputs[:2], *spec[5:7])
    _run_solve(inputs, spec, False, False, ends=ends, sums=sums, kept=kept.flatten(0, 1))
    return ends, sums, kept


def _solve_backward(grad_ends, grad_sums, ends, kept, adjoint, *arguments):
    inputs, spec = arguments[:9], arguments[9:]
    given = (*inputs[:7], *inputs[8])
    if len(inputs[0]):
        grads = [None if t is None else torch.empty_like(t) for t in given]
    else:  # the torch side does not launch then
        grads = [None if t is None else torch.zeros_like(t) for t in given]
    layers = len(spec[0]) + 1
    _run_solve(
        inputs, spec, adjoint, True, ends=ends, kept=kept.flatten(0, 1), grad_ends=grad_ends, grad_sums=grad_sums,
        grad_weights=grads[7 : 7 + layers], grad_biases=grads[7 + layers :],
        **dict(zip(_SOLVE_GRADS, grads)),
    )  # fmt: skip
    return [grad for grad in grads if grad is not None]


def _run_solve(inputs, spec, adjoint, backward, **more):
    *inputs, tensors = inputs
    activations, slopes, a, b, c, steps, every, weight, kinetic, jacobian = spec
    y, starts, directions = inputs[0], inputs[1], inputs[-1]
    layers, count = len(activations) + 1, 0 if directions is None else len(directions)
    tensors = dict(
        zip(_SOLVE_TENSORS, inputs), weights=tensors[:layers], biases=tensors[layers:], **more
    )  # fmt: skip
    sizes = (*y.shape, layers, len(b), len(starts), steps, every, count, kinetic, jacobian, adjoint, backward)
    units = [len(w) for w in tensors["weights"]]
    lists = [(ctypes.c_int64 * _LAYERS)(*v) for v in (units, activations)]
    numbers = [(ctypes.c_double * n)(*v) for n, v in ((_LAYERS, slopes), (28, a), (8, b), (8, c))]
    call = _SolveCall(*sizes, *lists, weight, *numbers)
    for name, value in tensors.items():
        some = isinstance(value, list)
        setattr(call, name, (Tensor * _LAYERS)(*map(Tensor.of, value)) if some else Tensor.of(value))
    run("neural_ode", call, y)


OPS = {"neural_ode": _solve, "neural_ode_backward": _solve_backward}
_SMALLER = {
    "wide": {"hidden": (33, 66), "method": "euler"},
    "two directions": {"hidden": (33, 5)},
    "exact three hidden": {"hidden": (9, 17, 5)},
}
_ONE_STEP = {"method": "euler", "steps": 1, "times": (0.0, 0.3), "time": None}
CASES = {
    # Tiles of four samples, the last of which is not full.
    **{name: replace(case, batch=min(case.batch, 9), **_SMALLER.get(name, {})) for name, case in NAMED.items()},
    # Tiles of 8, 16 and 32; of 16 there is no room for the second in float64.
    "rows-1030": Case(2, (5, 3), ("elu", "silu"), 1030, kinetic=True, rows=True, **_ONE_STEP),
    "rows-2050": Case(1, (330,), ("tanh",), 2050, **_ONE_STEP),
    "rows-4101": Case(1, (64,), ("tanh",), 4101, **_ONE_STEP),
    # Weights that stay in main memory, and tiles.
    "streamed": Case(1, (180, 180), ("tanh", "silu"), 5, **(_ONE_STEP | {"method": "midpoint"})),
    "workspace": Case(1, (2500,), ("tanh",), 5, **_ONE_STEP),
}
EVERY = [CASES["one sample"]]  # in which every kernel runs
SAME_BITS = {name: replace(CASES[name], batch=5) for name in ("checkpoints", "noise", "adjoint noise")}
MOST_BLOCKS = None  # which add up their gradients

"""The kernels as dispatcher ops: schemas, fake kernels, calls."""

from types import ModuleType
from typing import Any

import torch

from flowkern import _library as libraries
from flowkern.ops._dispatcher import Ops, define

_ARGUMENTS = (
    "Tensor y, Tensor starts, Tensor sizes, Tensor? row_bias, Tensor? time, Tensor? frequencies, "
    "Tensor? closed, Tensor? directions, Tensor?[] tensors, int[] activations, float[] slopes, float[] a, "
    "float[] b, float[] c, int steps, int every, float weight, bool kinetic, bool jacobian"
)


def outputs(y, starts, steps, every):
    """ends, sums and kept, not filled."""
    intervals = starts.shape[0]
    kept = y.new_empty(intervals, steps // every - 1, *y.shape)
    return y.new_empty(intervals, *y.shape), y.new_empty(intervals, 3, y.shape[0]), kept


def _fake(y, starts, *arguments):
    return outputs(y, starts, *arguments[12:14])


def _fake_backward(
    grad_ends,
    grad_sums,
    ends,
    kept,
    adjoint,
    y,
    starts,
    sizes,
    row_bias,
    time,
    frequencies,
    closed,
    directions,
    tensors,
    *_,
):
    inputs = (y, starts, sizes, row_bias, time, frequencies, closed, *tensors)
    return [y.new_empty(t.shape) for t in inputs if t is not None]


# name: (schema, fake kernel)
OPS: Ops = {
    "neural_ode": (f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _fake),
    "neural_ode_backward": (
        f"(Tensor grad_ends, Tensor grad_sums, Tensor ends, Tensor kept, bool adjoint, {_ARGUMENTS}) -> Tensor[]",
        _fake_backward,
    ),
}
_library = define("flowkern", OPS)
KERNELS = ("triton", *libraries.compiled("neural_ode"))
MOST_CUDA_LAYERS = 24  # csrc/neural_ode/cuda.h: what a kernel's arguments hold


def kernels(layers: int) -> tuple[str, str]:
    """The backends that have kernels for a field with this number of layers."""
    return KERNELS if layers <= MOST_CUDA_LAYERS else tuple(name for name in KERNELS if name != "cuda")


def forward(
    y: torch.Tensor, spec: Any, *arguments: torch.Tensor | None, ops: ModuleType = torch.ops.flowkern
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ends (I, N, D), sums (I, 3, N), kept (I, C, N, D) by the kernel registered for y's device."""
    *inputs, directions = arguments[:7]
    return ops.neural_ode(*_contiguous(y, *inputs), directions, _contiguous(*arguments[7:]), *spec)


def backward(
    grad_ends: torch.Tensor,
    grad_sums: torch.Tensor,
    ends: torch.Tensor,
    kept: torch.Tensor,
    y: torch.Tensor,
    adjoint: bool,
    spec: Any,
    *arguments: torch.Tensor | None,
    ops: ModuleType = torch.ops.flowkern,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of y, starts, sizes, row_bias, time, frequencies, closed, directions (None), the tensors."""
    *inputs, directions = arguments[:7]
    inputs, tensors = _contiguous(y, *inputs), _contiguous(*arguments[7:])
    cotangents = _contiguous(grad_ends, grad_sums)
    some = iter(ops.neural_ode_backward(*cotangents, ends, kept, adjoint, *inputs, directions, tensors, *spec))
    grads = [None if t is None else next(some) for t in (*inputs, *tensors)]
    return *grads[:7], None, *grads[7:]


def _contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [t if t is None else t.contiguous() for t in tensors]

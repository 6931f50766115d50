"""The kernels as dispatcher ops: schemas, fake kernels, calls."""

from types import ModuleType
from typing import Any

import torch

from flowkern import _library as libraries
from flowkern.ops._dispatcher import Ops, define
from flowkern.ops._masked_autoregressive import gradients
from flowkern.ops._masked_autoregressive.reference import NO_TERMS, Terms, compute_dtype

_ARGUMENTS = (
    "Tensor?[] tensors, Tensor order, Tensor ends, int[] activations, float[] slopes, int[] skips, "
    "bool inverse, int element, int[] kinds, float[] constants"
)
# Of the context's term of each layer up to the last that has one: context, weight and bias.
_TERMS = "Tensor?[] terms, int[] term_activations, float[] term_slopes"
_COTANGENTS = "Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor y"


def _fake(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


def _fake_backward(grad_y, grad_logabsdet, x, y, tape, tensors, *arguments):
    rows = gradients.tape_rows(tensors) if tape else 0
    return x.new_empty(x.shape), x.new_empty(rows, x.shape[0])


def _fake_gradients(
    grad_y: torch.Tensor,
    grad_logabsdet: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    needs: list[bool],
    tensors: list[torch.Tensor | None],
    *arguments: Any,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    wanted = [(i, t) for i, t in enumerate(tensors) if needs[i] and t is not None]
    grads = [x.new_empty(t.shape if i % 5 == 0 or t.dim() == 1 else t.mT.shape) for i, t in wanted]
    return x.new_empty(x.shape), grads


# name: (schema, fake kernel). The backward, on GPUs, leaves a tape; on the CPU, the other sums the gradients.
OPS: Ops = {
    "masked_autoregressive": (f"(Tensor x, {_ARGUMENTS}, {_TERMS}) -> (Tensor, Tensor)", _fake),
    "masked_autoregressive_backward": (
        f"({_COTANGENTS}, bool tape, {_ARGUMENTS}) -> (Tensor, Tensor)",
        _fake_backward,
    ),
    "masked_autoregressive_gradients": (
        f"({_COTANGENTS}, bool[] needs, {_ARGUMENTS}) -> (Tensor, Tensor[])",
        _fake_gradients,
    ),
}
_library = define("flowkern", OPS)
KERNELS = ("triton", *libraries.compiled("masked_autoregressive"))
# No context in the first layer: the same as no terms, for AOTInductor, which loses an empty list of optional tensors.
_ABSENT = Terms([None] * 3, (0,), (0.0,))


def forward(
    x: torch.Tensor,
    spec: Any,
    order: torch.Tensor,
    ends: torch.Tensor,
    ranks: torch.Tensor,
    *tensors: torch.Tensor | None,
    terms: Any = NO_TERMS,
    ops: ModuleType = torch.ops.flowkern,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (N, D), logabsdet (N,) by the kernel registered for x's device."""
    if not terms.tensors and ops is torch.ops.flowkern and torch.compiler.is_exporting():
        terms = _ABSENT
    count = len(tensors)
    x_k, *every = kernel_tensors(x, *tensors, *terms.tensors)
    y, logabsdet = ops.masked_autoregressive(
        x_k, every[:count], order, ends, *spec, every[count:], terms.activations, terms.slopes
    )
    return y if y.dtype == x.dtype else y.to(x.dtype), logabsdet


def backward(
    grad_y: torch.Tensor,
    grad_logabsdet: Any,
    x: Any,
    y: Any,
    needs: Any,
    spec: Any,
    order: Any,
    ends: torch.Tensor,
    ranks: torch.Tensor,
    *tensors: Any,
    ops: Any = torch.ops.flowkern,
) -> tuple[torch.Tensor | None, ...]:
    """grad_x (N, D) and the gradients of tensors that are needed."""
    grad_y_k, x_k, y_k, *tensors_k = kernel_tensors(grad_y, x, y, *tensors)
    kernel = grad_y_k, grad_logabsdet, x_k, y_k
    if leaves_tape(ops, x):
        grad_x, grads = _by_tape(ops, kernel, needs, tensors_k, order, ends, spec, ranks)
    else:
        grad_x, grads = _summed(kernel, needs, tensors_k, order, ends, spec)
    pairs = zip(grads, tensors)
    return grad_x.to(x.dtype), *(g if g is None else g.to(t.dtype) for g, t in pairs)


def leaves_tape(ops: ModuleType, x: torch.Tensor) -> bool:
    """Whether the kernel is one for GPUs, whose backward does not sum the gradients of tensors itself."""
    return x.is_cuda or ops is not torch.ops.flowkern


def _summed(
    kernel: Any,
    needs: tuple[bool, ...],
    tensors: list[torch.Tensor | None],
    order: torch.Tensor,
    ends: torch.Tensor,
    spec: Any,
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The CPU kernel sums the gradients itself, over the entries of weights that are read."""
    op = torch.ops.flowkern.masked_autoregressive_gradients
    grad_x, some = op(*kernel, needs, tensors, order, ends, *spec)
    some = iter(some)
    grads = [next(some) if need else None for need in needs]
    rows = (i % 5 != 0 and g is not None and g.dim() == 2 for i, g in enumerate(grads))
    return grad_x, [g.mT if row and g is not None else g for g, row in zip(grads, rows)]


def _by_tape(ops, kernel, needs, tensors, order, ends, spec, ranks):
    """A GPU kernel leaves a tape, from which matrix products form them."""
    op = ops.masked_autoregressive_backward
    grad_x, tape = op(*kernel, any(needs), tensors, order, ends, *spec)
    if not any(needs):
        return grad_x, [None] * len(tensors)
    known = kernel[3] if spec.inverse else kernel[2]
    return grad_x, gradients.of_tensors(known, tape, needs, ranks, tensors)


def kernel_tensors(*tensors):
    """The tensors in the one dtype that kernels take."""
    dtype = tensors[0].dtype
    if dtype.itemsize > 2 and all(t is None or t.dtype == dtype for t in tensors):
        return tensors
    dtype = compute_dtype(tensors[0], tensors)
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]

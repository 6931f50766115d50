"""The C++ and CUDA kernels as dispatcher ops: schemas, fake kernels, calls."""

import torch

from flowkern import _library as libraries
from flowkern.ops.masked_autoregressive import gradients
from flowkern.ops.masked_autoregressive.reference import compute_dtype

_ARGUMENTS = (
    "Tensor?[] tensors, Tensor order, Tensor ends, int[] activations, float[] slopes, int[] skips, "
    "bool inverse, int element, bool scale_first, int tails, float[] constants"
)
_library = torch.library.Library("flowkern", "FRAGMENT")
_library.define(f"masked_autoregressive(Tensor x, {_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    "masked_autoregressive_backward(Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor y, "
    f"bool tape, {_ARGUMENTS}) -> (Tensor, Tensor)"
)

COMPILED = libraries.compiled("masked_autoregressive")


@torch.library.register_fake("flowkern::masked_autoregressive", lib=_library)
def _(x, *arguments):
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


@torch.library.register_fake("flowkern::masked_autoregressive_backward", lib=_library)
def _(grad_y, grad_logabsdet, x, y, tape, tensors, *arguments):
    rows = gradients.tape_rows(tensors) if tape else 0
    return x.new_empty(x.shape), x.new_empty(rows, x.shape[0])


def forward(x, spec, order, ends, ranks, *tensors):
    """y (N, D), logabsdet (N,) by the kernel registered for x's device."""
    x_k, *tensors = kernel_tensors(x, *tensors)
    y, logabsdet = torch.ops.flowkern.masked_autoregressive(x_k, tensors, order, ends, *spec)
    return y.to(x.dtype), logabsdet


def backward(grad_y, grad_logabsdet, x, y, needs, spec, order, ends, ranks, *tensors):
    """grad_x (N, D) and the gradients of tensors that are needed."""
    grad_y_k, x_k, y_k, *tensors_k = kernel_tensors(grad_y, x, y, *tensors)
    grad_x, tape = torch.ops.flowkern.masked_autoregressive_backward(
        grad_y_k, grad_logabsdet, x_k, y_k, any(needs), tensors_k, order, ends, *spec
    )
    known = y_k if spec.inverse else x_k
    grads = [None] * len(tensors)
    if any(needs):
        grads = gradients.of_tensors(known, tape, needs, ranks, tensors_k)
    like = zip(grads, tensors)
    return grad_x.to(x.dtype), *(g if g is None else g.to(t.dtype) for g, t in like)


def kernel_tensors(*tensors):
    """The tensors in the one dtype that kernels take."""
    dtype = compute_dtype(tensors[0], tensors)
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]

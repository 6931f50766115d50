"""The C++ and CUDA kernels as dispatcher ops: schemas, fake kernels, calls."""

import torch

from flowkern import _library as libraries
from flowkern.ops._arguments import compute_dtype, in_dtype, kernel_tensors

_ARGUMENTS = (
    "Tensor x, Tensor params, Tensor? index, bool inverse, bool scale_first, int kind, float a, "
    "float b, float prefactor, float shift_prefactor"
)
_library = torch.library.Library("flowkern", "FRAGMENT")
_library.define(f"affine_coupling({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    f"affine_coupling_backward(Tensor grad_y, Tensor grad_logabsdet, {_ARGUMENTS}) -> (Tensor, Tensor)"
)

KERNELS = ("triton", *libraries.compiled("affine_coupling"))


@torch.library.register_fake("flowkern::affine_coupling", lib=_library)
def _(x, params, *arguments):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        x.shape[0], dtype=compute_dtype(x, params)
    )


@torch.library.register_fake("flowkern::affine_coupling_backward", lib=_library)
def _(grad_y, grad_logabsdet, x, params, *arguments):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(params)


def forward(x, params, *arguments):
    """y (N, D), logabsdet (N,) by the kernel registered for x's device."""
    x_k, params_k = kernel_tensors(x, params)
    y, logabsdet = torch.ops.flowkern.affine_coupling(x_k, params_k, *arguments)
    return in_dtype(y, x.dtype), logabsdet


def backward(grad_y, grad_logabsdet, x, params, *arguments):
    """grad_x (N, D) and grad_params (N, T, P), laid out as params is."""
    x_k, params_k, grad_y_k = kernel_tensors(x, params, grad_y)
    grad_x, grad_params = torch.ops.flowkern.affine_coupling_backward(
        grad_y_k, grad_logabsdet, x_k, params_k, *arguments
    )
    return grad_x.to(x.dtype), grad_params.to(params.dtype)

"""The C++ and CUDA kernels of the coupling ops as dispatcher ops: schemas, fake kernels, calls."""

from typing import Any

import torch

from flowkern import _library as libraries
from flowkern.ops._arguments import compute_dtype, in_dtype

_WIDE = (torch.float32, torch.float64)  # the dtypes that kernels take


def coupling_ops(op, schema):
    """The dispatcher ops of one op, that take the arguments in `schema`."""
    return {
        op: (f"({schema}) -> (Tensor, Tensor)", _fake),
        f"{op}_backward": (f"(Tensor grad_y, Tensor grad_logabsdet, {schema}) -> (Tensor, Tensor)", _fake_backward),
    }


def coupling_kernels(op):
    """(forward, backward, KERNELS) of one op."""

    # The ops are looked up in every call: the emulation of CUDA (tests/gpu/emulation) puts others in their place.
    def forward(x: torch.Tensor, params: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """y (N, D), logabsdet (N,) by the kernel registered for x's device."""
        kernel = getattr(torch.ops.flowkern, op)
        if x.dtype is params.dtype and x.dtype in _WIDE:
            return kernel(x, params, *arguments)
        y, logabsdet = kernel(*_in_one_dtype(x, params), *arguments)
        return in_dtype(y, x.dtype), logabsdet

    def backward(
        grad_y: torch.Tensor, grad_logabsdet: torch.Tensor, x: torch.Tensor, params: torch.Tensor, *arguments: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """grad_x (N, D) and grad_params (N, T, P), laid out as params is."""
        kernel = getattr(torch.ops.flowkern, f"{op}_backward")
        if x.dtype is params.dtype and x.dtype in _WIDE:
            return kernel(grad_y, grad_logabsdet, x, params, *arguments)
        x_k, params_k, grad_y_k = _in_one_dtype(x, params, grad_y)
        grad_x, grad_params = kernel(grad_y_k, grad_logabsdet, x_k, params_k, *arguments)
        return grad_x.to(x.dtype), grad_params.to(params.dtype)

    return forward, backward, ("triton", *libraries.compiled(op))


def _fake(x, params, *arguments):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        x.shape[0], dtype=compute_dtype(x, params)
    )


def _fake_backward(grad_y, grad_logabsdet, x, params, *arguments):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(params)


def _in_one_dtype(x: torch.Tensor, params: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """x, params and others in the one dtype that the C++ and CUDA kernels take."""
    dtype = compute_dtype(x, params)
    return [t if t.dtype == dtype else t.to(dtype) for t in (x, params, *others)]

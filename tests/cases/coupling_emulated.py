"""Calls of the couplings by the CUDA kernels in the emulation (coupling.h)."""

import ctypes

import torch

from tests.gpu.emulation.library import Tensor, run

_TENSORS = (
    "x", "params", "index", "bounds", "y", "logabsdet", "grad_y", "grad_logabsdet", "grad_params"
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 4),
        *((name, Tensor) for name in _TENSORS),
        ("integers", ctypes.c_int64 * 3),
        ("numbers", ctypes.c_double * 9),
    ]


def _call(x, params, integers, numbers, tensors):
    return _Call(
        (*x.shape, *params.shape[1:]), integers=tuple(map(int, integers)), numbers=numbers,
        **{name: Tensor.of(t) for name, t in tensors.items()},
    )  # fmt: skip


def _launch(op, x, params, integers, numbers, **tensors):
    run(op, _call(x, params, integers, numbers, tensors | {"x": x, "params": params}), x)


def forward(op, x, params, index, bounds, integers, numbers):
    y, logabsdet = torch.empty(x.shape, dtype=x.dtype), x.new_empty(x.shape[0])
    if params.shape[1] == 0:  # the torch side does not launch then
        return y.copy_(x), logabsdet.zero_()
    _launch(op, x, params, integers, numbers, index=index, bounds=bounds, y=y, logabsdet=logabsdet)
    return y, logabsdet


def backward(op, grad_y, grad_logabsdet, x, params, index, bounds, integers, numbers):
    grad_x, grad_params = torch.empty(x.shape, dtype=x.dtype), torch.empty_like(params)
    if params.shape[1] == 0:
        return grad_x.copy_(grad_y), grad_params
    _launch(
        op, x, params, integers, numbers, index=index, bounds=bounds, y=grad_x, grad_y=grad_y,
        grad_logabsdet=grad_logabsdet, grad_params=grad_params,
    )  # fmt: skip
    return grad_x, grad_params

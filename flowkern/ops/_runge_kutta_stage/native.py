"""The C++ and CUDA kernels as dispatcher ops: schemas, fake kernels, calls."""

from types import ModuleType

import torch

from flowkern import _library as libraries
from flowkern.ops._dispatcher import Ops, define


def _fake_stage(y, k, weights):
    return torch.empty_like(y)


def _fake_error(y0, *arguments):
    return y0.new_empty(y0.shape[:1] or (1,))


OPS: Ops = {
    "runge_kutta_stage": ("(Tensor y, Tensor[] k, Tensor weights) -> Tensor", _fake_stage),
    "runge_kutta_error": (
        "(Tensor y0, Tensor y1, Tensor[] k, Tensor weights, float rtol, float atol) -> Tensor",
        _fake_error,
    ),
}
_library = define("flowkern", OPS)
KERNELS = ("triton", *libraries.compiled("runge_kutta_stage"))


def forward(
    y: torch.Tensor, weights: torch.Tensor, *k: torch.Tensor, ops: ModuleType = torch.ops.flowkern
) -> torch.Tensor:
    """y + Σ_j w_j k_j by the kernel registered for y's device."""
    return ops.runge_kutta_stage(y.contiguous(), [k_j.contiguous() for k_j in k], weights)


def error(y0, y1, weights, rtol, atol, *k, ops=torch.ops.flowkern):
    """Squares of the scaled error, summed over each row."""
    slopes = [k_j.contiguous() for k_j in k]
    return ops.runge_kutta_error(y0.contiguous(), y1.contiguous(), slopes, weights, rtol, atol)

"""A Runge-Kutta stage as one call, its derivatives, and the choice of what runs."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from flowkern import _torch
from flowkern.ops._function import Rule, Tensors
from flowkern.ops._runge_kutta_stage import native, reference

_KERNEL_DTYPES = (torch.float32, torch.float64)
_MOST = 8  # tensors k that a kernel takes


class _Stage(Rule):
    """The map is linear in y and k: its backward are products, in plain PyTorch."""

    differentiable = 1

    def forward(self, kernels: ModuleType, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        return (kernels.forward(*tensors),)

    def save(self, ctx: Any, tensors: Tensors, outputs: Tensors) -> None:
        # The stages are needed for the weights' gradient alone, that is, for one of times.
        _, weights, *k = tensors
        ctx.save_for_backward(weights, *(k if ctx.needs_input_grad[4] else ()))

    def saved(self, ctx: Any) -> tuple[Tensors, Tensors]:
        return ctx.saved_tensors, ()

    def gradients(
        self, backend: str, plain: Any, needs: Sequence[bool], cotangents: Tensors, outputs: Tensors, tensors: Tensors
    ) -> Tensors:
        weights, *k = tensors
        (grad,) = cotangents
        grads = (reference.spread(weights, grad) * grad).unbind()  # one kernel for all stages
        return grad, _weights_grad(grad, weights, k) if k else None, *grads

    differentiate = gradients


class _Error(Rule):
    """The scaled error of a step, which is not differentiable."""

    differentiable = 0

    def forward(self, kernels: ModuleType, plain: Any, *tensors: Any) -> tuple[torch.Tensor, ...]:
        y0, y1, weights, *k = tensors
        return (kernels.error(y0, y1, weights, *plain, *k),)


def _triton() -> ModuleType:
    from flowkern.ops._runge_kutta_stage import triton

    return triton


rule = _Stage(native, reference, _triton)
error_rule = _Error(native, reference, _triton)
error_rule.name = "runge_kutta_error"


def _weights_grad(grad: torch.Tensor, weights: torch.Tensor, k: Sequence[torch.Tensor]) -> torch.Tensor:
    """⟨grad, k_j⟩, of each row where weights are (N, s)."""
    first = weights.dim() - 1
    products = [(grad * k_j).reshape(*grad.shape[:first], -1).sum(first) for k_j in k]
    return torch.stack(products, first)


def apply(y: torch.Tensor, k: Sequence[torch.Tensor], weights: torch.Tensor, backend: str) -> torch.Tensor:
    """y + Σ_j w_j k_j on the named backend."""
    if torch.compiler.is_compiling() or y.dtype not in _KERNEL_DTYPES:
        return reference.forward(y, weights, *k)
    if len(k) > _MOST:
        weights, *k = _few(weights, *k)
    return rule.apply(backend, (), y, weights, *k)[0]


@torch.no_grad()
def error(
    y0: torch.Tensor,
    y1: torch.Tensor,
    k: Sequence[torch.Tensor],
    weights: torch.Tensor,
    rtol: float | torch.Tensor,
    atol: float | torch.Tensor,
    backend: str,
) -> torch.Tensor:
    """Squares of the scaled error, summed over each row, on the named backend."""
    plain = _plain(y0) or isinstance(rtol, torch.Tensor) or isinstance(atol, torch.Tensor)
    if len(k) > _MOST:
        weights, *k = _few(weights, *k)
    if plain:
        return reference.error(y0, y1, weights, rtol, atol, *k)
    return error_rule.apply(backend, (rtol, atol), y0, y1, weights, *k)[0]


def _few(weights: torch.Tensor, *k: Any) -> Sequence[torch.Tensor]:
    """As many as a kernel takes, those beyond summed into the last of them."""
    weights, rest = weights.split((_MOST - 1, len(k) - _MOST + 1), -1)
    total = reference.combination(rest, k[_MOST - 1 :])
    return torch.cat((weights, torch.ones_like(weights[..., :1])), -1), *k[: _MOST - 1], total


def _plain(y: torch.Tensor) -> bool:
    """Where PyTorch has to see plain operations: compilers, traces, transforms, forward mode, other dtypes."""
    return torch.compiler.is_compiling() or y.dtype not in _KERNEL_DTYPES or _torch.observed()

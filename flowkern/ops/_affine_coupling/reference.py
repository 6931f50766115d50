"""The affine coupling in plain PyTorch: the specification of every kernel."""

from typing import Any

import torch

from flowkern.ops._affine_coupling.scale_map import ADDITIVE, KINDS
from flowkern.ops._arguments import compute_dtype, in_dtype, selected

_FORMULAS = tuple(kind.log_scale for kind in KINDS.values())


def forward(
    x: torch.Tensor,
    params: torch.Tensor,
    index: torch.Tensor | None,
    inverse: bool,
    scale_first: bool,
    kind: int,
    a: float,
    b: float,
    prefactor: float,
    shift_prefactor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, D), params (N, T, P) -> y (N, D), logabsdet (N,); differentiable to any order."""
    dtype = compute_dtype(x, params)
    x_t = selected(x, index).to(dtype)
    params = params.to(dtype)
    shift = shift_prefactor * params[..., 1 if scale_first and kind != ADDITIVE else 0]
    raw = shift if kind == ADDITIVE else prefactor * params[..., 0 if scale_first else 1]
    log_scale = _FORMULAS[kind](raw, a, b)
    if inverse:
        y_t, logabsdet = (x_t - shift) * torch.exp(-log_scale), -log_scale.sum(-1)
    else:
        y_t, logabsdet = torch.exp(log_scale) * x_t + shift, log_scale.sum(-1)
    y_t = in_dtype(y_t, x.dtype)
    y = y_t if index is None else x.index_copy(-1, index, y_t)
    return y, logabsdet


def backward(
    grad_y: torch.Tensor, grad_logabsdet: Any, x: Any, params: Any, *arguments: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector-Jacobian product of `forward` by autograd."""
    _, pull, *_ = torch.func.vjp(lambda x, p: forward(x, p, *arguments), x, params)
    return pull((grad_y, grad_logabsdet))

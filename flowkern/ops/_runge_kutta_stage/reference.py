"""The specification in plain PyTorch; what a compiler sees, which fuses it with what is around."""

from typing import Any

import torch


def forward(y: torch.Tensor, weights: torch.Tensor, *k: torch.Tensor) -> torch.Tensor:
    """y + Σ_j w_j k_j."""
    return y + combination(weights, k)


def combination(weights, k):
    """Σ_j w_j k_j."""
    total = None
    for w, k_j in zip(spread(weights, k[0]).unbind(), k):
        total = w * k_j if total is None else total + w * k_j
    return total


def spread(weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Weights as (s, 1, …) or (s, N, 1, …), to be multiplied with a tensor (N, …)."""
    if weights.dim() == 1:
        return weights.view(-1, *(1,) * like.dim())
    return weights.mT.unflatten(1, (-1, *(1,) * (like.dim() - 1)))


def error(
    y0: torch.Tensor, y1: torch.Tensor, weights: torch.Tensor, rtol: Any, atol: Any, *k: torch.Tensor
) -> torch.Tensor:
    """Squares of the scaled error, summed over each row; NaN where y1 is not finite."""
    tolerance = atol + rtol * torch.maximum(y0.abs(), y1.abs())
    scaled = combination(weights, k).abs() / tolerance + (y1 - y1).abs()
    squares = scaled.square()
    return squares.flatten(1).sum(1) if squares.dim() > 1 else squares.reshape(-1)

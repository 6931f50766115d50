"""The probability path in plain PyTorch: the specification of every kernel."""

import math

import torch

from flowkern.ops import _random
from flowkern.ops._probability_path.kinds import CONDITIONAL, TARGET, VARIANCE_PRESERVING

NOISE_STREAM, TIME_STREAM = 0, 1


def forward(
    x0: torch.Tensor,
    x1: torch.Tensor,
    t: torch.Tensor | None,
    noise: torch.Tensor | None,
    seed: torch.Tensor,
    path: int,
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0, x1 (N, D), t (N,) or None -> x_t, u_t (N, D), and the t drawn; differentiable in x0, x1, t."""
    drawn = x0.new_empty(0)
    if t is None:
        t = drawn = _random.uniform(_random.words(x0.shape[0], TIME_STREAM, seed), x0.dtype)
    if noise is None:
        noise = _noise(x0, seed, path, sigma)
    return *_sample(x0, x1, noise, t.unsqueeze(-1), path, sigma), drawn


def _noise(x: torch.Tensor, seed: torch.Tensor, path: int, sigma: float) -> torch.Tensor:
    if sigma == 0 and path != TARGET:
        return torch.zeros_like(x)
    return _random.normal(x.numel(), NOISE_STREAM, seed, x.dtype).view(x.shape)


def _sample(
    x0: torch.Tensor, x1: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, path: int, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t and its velocity, for each kind of path."""
    if path == TARGET:
        return t * x1 + (1 - (1 - sigma) * t) * noise, x1 - (1 - sigma) * noise
    if path == VARIANCE_PRESERVING:
        cos, sin = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
        return cos * x0 + sin * x1 + sigma * noise, math.pi / 2 * (cos * x1 - sin * x0)
    mean = t * x1 + (1 - t) * x0
    if path == CONDITIONAL:
        return mean + sigma * noise, x1 - x0
    deviation = sigma * torch.sqrt(t * (1 - t)) * noise
    return mean + deviation, (1 - 2 * t) / (2 * t * (1 - t) + 1e-8) * deviation + x1 - x0


def backward(grad_x, grad_u, of_t, x0, x1, t, *arguments):
    """grad_x0, grad_x1 (N, D), and grad_t (N,) if of_t, by autograd."""
    _, pull, *_ = torch.func.vjp(lambda *some: forward(*some, *arguments)[:2], x0, x1, t)
    *grads, grad_t = pull((grad_x, grad_u))
    return *grads, grad_t if of_t else None

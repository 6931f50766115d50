"""The C++ and CUDA kernels as dispatcher ops: schemas, fake kernels, calls."""

import torch

from flowkern import _library as libraries
from flowkern.ops._dispatcher import Ops, define

_ENDS = "Tensor x0, Tensor x1"
_REST = "Tensor? noise, Tensor seed, int path, float sigma"
_OUT = "(Tensor, Tensor, Tensor)"


def _fake(x0, x1, t, *arguments):
    return new_outputs(x0, t)


def _fake_backward(grad_x, grad_u, of_t, x0, *arguments):
    return new_grads(x0, of_t)


def new_outputs(x0, t):
    """Memory for x_t and u_t (N, D), and for t (N,) where it is drawn, else (0,)."""
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape), x0.new_empty(0 if t is not None else x0.shape[0])


def new_grads(x0, of_t):
    """Memory for grad_x0 and grad_x1 (N, D), and for the parts of grad_t (N, D) where wanted."""
    return *(x0.new_empty(x0.shape) for _ in range(2)), x0.new_empty(x0.shape if of_t else 0)


OPS: Ops = {
    "probability_path": (f"({_ENDS}, Tensor? t, {_REST}) -> {_OUT}", _fake),
    "probability_path_backward": (
        f"(Tensor grad_x, Tensor grad_u, bool of_t, {_ENDS}, Tensor t, {_REST}) -> {_OUT}",
        _fake_backward,
    ),
}
_library = define("flowkern", OPS)
KERNELS = ("triton", *libraries.compiled("probability_path"))


def forward(
    x0: torch.Tensor,
    x1: torch.Tensor,
    t: torch.Tensor | None,
    noise: torch.Tensor | None,
    seed: torch.Tensor,
    path: int,
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t and u_t (N, D), and the t (N,) that were drawn."""
    return torch.ops.flowkern.probability_path(x0, x1, t, noise, seed, path, sigma)


def backward(
    grad_x: torch.Tensor,
    grad_u: torch.Tensor,
    of_t: bool,
    x0: torch.Tensor,
    x1: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor | None,
    seed: torch.Tensor,
    path: int,
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """grad_x0 and grad_x1 (N, D), and grad_t (N,) if of_t."""
    grad_x0, grad_x1, parts = torch.ops.flowkern.probability_path_backward(
        grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma
    )
    return grad_x0, grad_x1, parts.sum(-1) if of_t else None

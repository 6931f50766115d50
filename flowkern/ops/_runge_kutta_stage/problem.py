"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._problem import FEATURES, ROWS, Draw, Problem
from flowkern.ops._runge_kutta_stage import runge_kutta_error, runge_kutta_stage


def problems(draw: Draw) -> list[Problem]:
    y0, y1, weights, *k = draw(ROWS, FEATURES), draw(ROWS, FEATURES), draw(3), *(draw(ROWS, FEATURES) for _ in range(3))
    return [
        Problem("runge_kutta_stage", "forward", (y0, weights, *k), _stage),
        Problem("runge_kutta_error", "forward", (y0, y1, weights, *k), _error),
    ]


def _stage(y: torch.Tensor, weights: torch.Tensor, *k: torch.Tensor) -> tuple[torch.Tensor]:
    return (runge_kutta_stage(y, k, weights),)


def _error(y0: torch.Tensor, y1: torch.Tensor, weights: torch.Tensor, *k: torch.Tensor) -> tuple[torch.Tensor]:
    return (runge_kutta_error(y0, y1, k, weights, 1e-1, 1e-2),)

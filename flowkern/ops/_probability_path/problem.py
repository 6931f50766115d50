"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._probability_path import probability_path
from flowkern.ops._problem import FEATURES, ROWS, Draw, Problem


def problems(draw: Draw) -> list[Problem]:
    def call(x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return probability_path(x0, x1, t, path="schroedinger_bridge", sigma=0.3, noise=noise.detach())[1:]

    tensors = draw(ROWS, FEATURES), draw(ROWS, FEATURES), draw(ROWS).sigmoid(), draw(ROWS, FEATURES)
    return [Problem("probability_path", "forward", tensors, call)]

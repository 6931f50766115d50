"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._problem import FEATURES, ROWS, Draw, Problem, both
from flowkern.ops._rational_quadratic_spline import rational_quadratic_spline


def problems(draw: Draw) -> list[Problem]:
    def call(x: torch.Tensor, params: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, ...]:
        mask = torch.arange(FEATURES, device=x.device) % 2 == 0
        return rational_quadratic_spline(x, params, mask=mask, bound=3.0, inverse=inverse)

    tensors = draw(ROWS, FEATURES), draw(ROWS, FEATURES // 2, 3 * 8 - 1) / 4
    return both("rational_quadratic_spline", tensors, call)

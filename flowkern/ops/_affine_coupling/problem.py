"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._affine_coupling import affine_coupling
from flowkern.ops._problem import FEATURES, ROWS, Draw, Problem, both


def problems(draw: Draw) -> list[Problem]:
    def call(x: torch.Tensor, params: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, ...]:
        index = torch.arange(0, FEATURES, 2, device=x.device)
        return affine_coupling(x, params, index=index, scale_map="sigmoid", inverse=inverse)

    return both("affine_coupling", (draw(ROWS, FEATURES), draw(ROWS, FEATURES // 2, 2)), call)

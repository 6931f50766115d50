"""The op as a function of one tensor: BATCHED of x (2, 3), dynamic of x (6, 4) and a constant c."""

import torch

from flowkern.ops import rational_quadratic_spline


def batched(x):
    return rational_quadratic_spline(x, x.unsqueeze(-1) * torch.ones(8).double())[0]


def dynamic(x, c):
    return rational_quadratic_spline(x, torch.linspace(-2, 2, 56).double().view(4, 14), bound=c)[0]


BATCHED = {"rational_quadratic_spline": lambda: batched}

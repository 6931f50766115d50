"""The op as a function of one tensor: BATCHED of x (2, 3), dynamic of x (6, 4) and a constant c."""

import torch

from flowkern.ops import ScaleMap, affine_coupling


def batched(x):
    return affine_coupling(x, torch.stack((x, x.sin()), -1))[0]


def dynamic(x, c):
    params = torch.linspace(-2, 2, 8).double().view(4, 2)
    return affine_coupling(x, params, scale_map=ScaleMap("softplus", a=c, prefactor=c))[0]


BATCHED = {"affine_coupling": lambda: batched}

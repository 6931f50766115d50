"""The op as a function of one tensor: BATCHED of x (2, 3), dynamic of x (6, 4) and a constant c."""

import torch

from flowkern.ops import probability_path


def batched(x):
    return probability_path(x, x.sin(), path="schroedinger_bridge", sigma=0.3, seed=3)[1]


def dynamic(x, c):
    noise = torch.linspace(-4, 4, 24).double().view(6, 4)
    return probability_path(x, -x, noise[:, 0].sigmoid(), noise=noise, sigma=c)[1]


BATCHED = {"probability_path": lambda: batched}

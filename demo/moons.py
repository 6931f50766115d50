"""Two moons by a Real NVP from flowkern's own flow API."""

import torch
from sklearn.datasets import make_moons

from flowkern.flows import RealNVP


def points(count, seed):
    """Points (count, 2) of two half circles with a little noise, centred."""
    x, _ = make_moons(count, noise=0.06, random_state=seed)
    return torch.as_tensor(x, dtype=torch.float32) - torch.tensor([0.5, 0.25])


def train(settings, on_step):
    """A Real NVP that has learnt `points`.

    Args:
        on_step: called with the loss after every step, for a progress bar.
    """
    torch.manual_seed(0)
    flow = RealNVP(features=2, transforms=8, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.moons_steps)
    data = points(20_000, seed=0)
    for _ in range(settings.moons_steps):
        x = data[torch.randint(len(data), (settings.moons_batch,))]
        loss = -flow().log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(loss.item())
    return flow


@torch.no_grad()
def density(flow, extent, pixels=240):
    """p(x) on a grid over `extent` (left, right, bottom, top), rows from bottom to top."""
    left, right, bottom, top = extent
    width = torch.linspace(left, right, pixels)
    height = torch.linspace(bottom, top, round(pixels * (top - bottom) / (right - left)))
    grid = torch.cartesian_prod(height, width).flip(-1)
    return flow().log_prob(grid).exp().reshape(len(height), len(width))

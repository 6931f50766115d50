"""Fields with and without closed-form solutions, for the tests of solvers."""

import torch


class Field(torch.nn.Module):
    """A small network whose values depend on time; `seen` is for what a test wants to note."""

    def __init__(self, dtype, width=3):
        super().__init__()
        self.seen = []
        self.inner = torch.nn.Linear(width, 4, dtype=dtype)
        self.outer = torch.nn.Linear(4, width, dtype=dtype)

    def forward(self, t, y):
        return self.outer(torch.tanh(self.inner(y) * (1 + t)))

    def pair(self, t, state):
        """A state of two parts, the second one (N,)."""
        y, total = state
        return self(t, y), y.sum(-1) - t * total


def spiral(rows):
    """y' = −y/2 + t·Jy with J a quarter turn: (field, y0, solution), float64 (rows, 2)."""
    y0 = torch.randn(rows, 2, dtype=torch.float64)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)

    def field(t, y):
        return -y / 2 + t * (y @ turn)

    def solution(t):
        angle = t * t / 2
        rotated = torch.cos(angle) * y0 + torch.sin(angle) * (y0 @ turn)
        return torch.exp(-t / 2) * rotated

    return field, y0, solution


def logistic(t, y):
    """y' = y(1 − y)."""
    return y * (1 - y)


def decay(rates):
    """y' = −r·cos(t)·y with a rate for each row: (field, solution(y0, t0, t))."""

    def field(t, y):
        return -rates * torch.cos(t) * y

    def solution(y0, t0, t):
        return y0 * torch.exp(-rates * (torch.sin(t) - torch.sin(t0)))

    return field, solution


def close(got, want, rtol=None):
    """Equal to a few roundings of the largest element."""
    eps = torch.finfo(want.dtype).eps
    scale = want.abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=0, atol=max(64 * eps, rtol or 0) * (scale + 1))

"""Launches of every variant of the op's Triton kernels: (name, launcher, its arguments)."""

import torch

from flowkern.ops._runge_kutta_stage import triton as stage
from tests.gpu.compiled.meta import FEATURES, ROWS

# (stages, weights for each row, dtype)
STAGES = [(1, False, torch.float32), (4, True, torch.float32), (8, False, torch.float64)]


def launches():
    for stages, by_row, dtype in STAGES:
        y = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
        weights = torch.empty(*(ROWS,) * by_row, stages, dtype=dtype, device="meta")
        name = f"s={stages}, {dtype}" + ", by row" * by_row
        yield f"stage, {name}", stage._launch_stage, (y, [y] * stages, weights)
        yield f"error, {name}", stage._launch_error, (y, y, [y] * stages, weights, 1e-3, 1e-6)

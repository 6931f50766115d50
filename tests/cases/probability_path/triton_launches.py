"""Launches of every variant of the op's Triton kernels: (name, launcher, its arguments)."""

import torch

from flowkern.ops._probability_path import PATHS
from flowkern.ops._probability_path import triton as path
from tests.gpu.compiled.meta import FEATURES, ROWS

# (path, whether t and noise are given, dtype)
PATH_LAUNCHES = [
    *((name, False, dtype) for name in PATHS for dtype in (torch.float32, torch.float64)),
    ("conditional", True, torch.float32),
]


def _path(given, dtype):
    """x, t or None, noise or None, the seed."""
    x = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
    seed = torch.empty((), dtype=torch.int64, device="meta")
    return x, x[:, 0].contiguous(), x if given else None, seed


def launches():
    for kind, given, dtype in PATH_LAUNCHES:
        x, t, *rest = _path(given, dtype)
        name, rest = f"{kind}, {dtype}" + ", given" * given, (*rest, PATHS[kind], 0.5)
        yield f"forward, {name}", path._launch_forward, (x, x, t if given else None, *rest)
        yield f"backward, {name}", path._launch_backward, (x, x, True, x, x, t, *rest)

"""Launches of every variant of the op's Triton kernels: (name, launcher, its arguments)."""

import torch

from flowkern.ops._rational_quadratic_spline import TAILS, KnotMap
from flowkern.ops._rational_quadratic_spline import triton as spline
from tests.gpu.compiled.meta import FEATURES, coupling_tensors, directions

# (bins, tails, knot map, inverse, index and one bound per feature, dtype)
SPLINES = [
    (1, "identity", "softplus", False, False, torch.float32),
    (8, "identity", "softplus", False, True, torch.float32),
    (8, "identity", "softplus", True, False, torch.float32),
    (8, "circular", "softplus", True, True, torch.float32),
    (8, "none", "softclip", False, False, torch.float32),
    (16, "identity", "softplus", False, False, torch.float32),
    (16, "circular", "softclip", True, True, torch.float32),
    (16, "none", "softplus", True, False, torch.float32),
    (64, "identity", "softplus", False, False, torch.float32),
    (8, "identity", "softplus", False, False, torch.float64),
    (8, "identity", "softplus", False, False, torch.bfloat16),
]


def launches():
    for bins, tails, kind, inverse, index, dtype in SPLINES:
        code, extra = TAILS[tails]
        grads, tensors, places = coupling_tensors(3 * bins + extra, index, dtype)
        bound = torch.empty(FEATURES, dtype=grads[1].dtype, device="meta") if index else None
        box = (-3.0, 3.0, -3.0, 3.0)
        arguments = (places, bound, inverse, code, *box, *KnotMap.of(kind).numbers())
        name = f"K={bins}, {tails}, {kind}, {dtype}" + ", inverse" * inverse + ", index" * index
        yield from directions(name, spline, grads, tensors, arguments)

"""Launches of every variant of the op's Triton kernels: (name, launcher, its arguments)."""

import torch

from flowkern.ops import ScaleMap
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._affine_coupling import triton as affine
from tests.gpu.compiled.meta import coupling_tensors, directions

# Every branch of the kernels that is taken at compile time, each at least once:
# (scale map, inverse, index, dtype)
AFFINES = [
    *((kind, bool(number % 2), False, torch.float32) for number, kind in enumerate(SCALE_MAPS)),
    ("exp", False, True, torch.float32),
    ("tanh", False, False, torch.float64),
    ("softplus", False, False, torch.bfloat16),
]


def launches():
    for kind, inverse, index, dtype in AFFINES:
        grads, tensors, places = coupling_tensors(1 if kind == "additive" else 2, index, dtype)
        arguments = (places, inverse, False, *ScaleMap(kind).numbers())
        name = f"{kind}, {dtype}" + ", inverse" * inverse + ", index" * index
        yield from directions(name, affine, grads, tensors, arguments)

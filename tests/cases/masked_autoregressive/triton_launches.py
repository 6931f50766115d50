"""Launches of every variant of the op's Triton kernels: (name, launcher, its arguments)."""

import torch

from flowkern.ops import AffineElement, SplineElement
from flowkern.ops._masked_autoregressive import triton as masked
from flowkern.ops._masked_autoregressive.reference import NO_TERMS
from tests.gpu.compiled.meta import FEATURES, ROWS

# (element, parameters per feature, inverse, dtype)
MASKED = [
    (AffineElement("additive"), 1, False, torch.float32),
    (AffineElement("softplus"), 2, True, torch.float64),
    (SplineElement(3.0), 23, True, torch.float32),
]


def _conditioner(element, parameters, inverse, dtype):
    """x and the cotangents, and what a residual conditioner has besides."""
    units = (FEATURES, 128, 128, 128, FEATURES * parameters)
    tensors = []
    for inputs, outputs in zip(units, units[1:]):
        empty = torch.empty(outputs, inputs, dtype=dtype, device="meta")
        tensors += [empty, empty[:, 0], *(empty[:, 0] for _ in range(3))]
    order = torch.empty(sum(units[:-1]), dtype=torch.int64, device="meta")
    ends = torch.empty(len(units) - 1, FEATURES + 1, dtype=torch.int64, device="meta")
    spec = ((2, 1, 5, 0), (1.0,) * 4, (-1, -1, 0, -1), inverse, *element.numbers())
    x = torch.empty(ROWS, FEATURES, dtype=dtype, device="meta")
    return x, x[:, 0], (tensors, order, ends, *spec)


def _terms(x, tensors, inputs=10):
    """Those of a context that every layer has."""
    context, kinds = x.new_empty(ROWS, inputs), (2,) * (len(tensors) // 5)
    each = [t for w in tensors[::5] for t in (context, w.new_empty(len(w), inputs), w[:, 0])]
    return each, kinds, (1.0,) * len(kinds)


def launches():
    for element, parameters, inverse, dtype in MASKED:
        x, logabsdet, rest = _conditioner(element, parameters, inverse, dtype)
        name = f"P={parameters}, {dtype}" + ", inverse" * inverse
        yield f"forward, {name}", masked._launch_forward, (x, *rest, *NO_TERMS)
        yield f"forward, {name}, context", masked._launch_forward, (x, *rest, *_terms(x, rest[0]))
        yield f"backward, {name}", masked._launch_backward, (x, logabsdet, x, x, True, *rest)

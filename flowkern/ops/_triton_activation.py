"""Activations in Triton, by the codes of _activation.py: values and derivatives."""

import triton
import triton.language as tl

from flowkern.ops import _triton
from flowkern.ops._activation import KINDS

_CODES = {kind: code for code, kind in enumerate(KINDS)}
LEAKY_RELU, TANH, ELU = (tl.constexpr(_CODES[kind]) for kind in ("leaky_relu", "tanh", "elu"))
SILU, GELU = (tl.constexpr(_CODES[kind]) for kind in ("silu", "gelu"))
SIGMOID, SOFTPLUS = (tl.constexpr(_CODES[kind]) for kind in ("sigmoid", "softplus"))


@triton.jit
def normal_cdf(z):
    """Φ(z)."""
    return 0.5 + 0.5 * tl.erf(0.7071067811865476 * z)


@triton.jit
def expm1(z):
    """exp z − 1 = 2t/(1 − t) with t = tanh(z/2), to full relative accuracy, for z ≤ 0."""
    t = _triton.tanh(z * 0.5)
    return 2 * t / (1 - t)


@triton.jit
def activate(kind, slope, z):
    """activation(z) and its first two derivatives; at a kink those from the left."""
    u, d, dd = z, tl.full(z.shape, 1.0, z.dtype), tl.zeros_like(z)
    if kind == LEAKY_RELU:
        u, d = tl.where(z > 0, z, slope * z), tl.where(z > 0, d, slope)
    elif kind == TANH:
        u = _triton.tanh(z)
        d = 1 - u * u
        dd = -2 * u * d
    elif kind == ELU:
        below = tl.minimum(z, 0.0)
        dd = slope * tl.exp(below)
        u, d = tl.where(z > 0, z, slope * expm1(below)), tl.where(z > 0, d, dd)
        dd = tl.where(z > 0, 0.0, dd)
    elif kind == SILU:
        s = _triton.sigmoid(z)
        u, d, dd = z * s, s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))
    elif kind == GELU:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        below = normal_cdf(z)
        u, d, dd = z * below, below + z * density, 2 * density - z * density * z
    elif kind == SIGMOID:
        u = _triton.sigmoid(z)
        d = u * (1 - u)
        dd = d * (1 - 2 * u)
    elif kind == SOFTPLUS:
        u, d = _triton.softplus(z), _triton.sigmoid(z)
        dd = d * (1 - d)
    return u, d, dd

"""Activations in Triton, by the codes of csrc/common/activation.h: values and derivatives."""

import triton
import triton.language as tl

from flowkern.ops import _triton


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
    if kind == 1:
        u, d = tl.where(z > 0, z, slope * z), tl.where(z > 0, d, slope)
    elif kind == 2:
        u = _triton.tanh(z)
        d = 1 - u * u
        dd = -2 * u * d
    elif kind == 3:
        below = tl.minimum(z, 0.0)
        dd = slope * tl.exp(below)
        u, d = tl.where(z > 0, z, slope * expm1(below)), tl.where(z > 0, d, dd)
        dd = tl.where(z > 0, 0.0, dd)
    elif kind == 4:
        s = _triton.sigmoid(z)
        u, d, dd = z * s, s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))
    elif kind == 5:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        below = normal_cdf(z)
        u, d, dd = z * below, below + z * density, 2 * density - z * density * z
    elif kind == 6:
        u = _triton.sigmoid(z)
        d = u * (1 - u)
        dd = d * (1 - 2 * u)
    elif kind == 7:
        u, d = _triton.softplus(z), _triton.sigmoid(z)
        dd = d * (1 - d)
    return u, d, dd

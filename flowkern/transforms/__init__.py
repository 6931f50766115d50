"""Invertible transforms, to compose by hand: `forward` takes data to noise, `inverse` back.

Each is an `nn.Module` with
    forward(x, context=None) -> (y, logabsdet)        inverse(y, context=None) -> (x, logabsdet)
where x and y are (…, features), context is (…, context) and broadcasts with x, and logabsdet (…,)
is the log of the absolute determinant of the Jacobian of the direction that was called.
"""

from flowkern.transforms.autoregressive import (
    AffineAutoregressive,
    MaskedAutoregressive,
    SplineAutoregressive,
)
from flowkern.transforms.base import Compose, Inverse, Transform
from flowkern.transforms.coupling import AffineCoupling, SplineCoupling, alternating_mask
from flowkern.transforms.linear import ActNorm, LULinear, Permutation
from flowkern.transforms.neural_ode import NeuralODE

__all__ = [
    "ActNorm",
    "AffineAutoregressive",
    "AffineCoupling",
    "Compose",
    "Inverse",
    "LULinear",
    "MaskedAutoregressive",
    "NeuralODE",
    "Permutation",
    "SplineAutoregressive",
    "SplineCoupling",
    "Transform",
    "alternating_mask",
]

"""The fused ops. Each lives in a folder of its own, with its derivation in a README."""

from flowkern.ops._affine_coupling import ScaleMap, affine_coupling
from flowkern.ops._masked_autoregressive import (
    Activation,
    AffineElement,
    ContextTerm,
    Degrees,
    MaskedLayer,
    SplineElement,
    masked_autoregressive,
    masked_autoregressive_inverse,
)
from flowkern.ops._neural_ode import FieldLayer, TimeEmbedding, neural_ode
from flowkern.ops._probability_path import probability_path
from flowkern.ops._rational_quadratic_spline import KnotMap, rational_quadratic_spline
from flowkern.ops._runge_kutta_stage import runge_kutta_error, runge_kutta_stage

__all__ = [
    "Activation",
    "AffineElement",
    "ContextTerm",
    "Degrees",
    "FieldLayer",
    "KnotMap",
    "MaskedLayer",
    "ScaleMap",
    "SplineElement",
    "TimeEmbedding",
    "affine_coupling",
    "masked_autoregressive",
    "masked_autoregressive_inverse",
    "neural_ode",
    "probability_path",
    "rational_quadratic_spline",
    "runge_kutta_error",
    "runge_kutta_stage",
]

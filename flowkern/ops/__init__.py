"""The fused ops. Each lives in a folder of its own, with its derivation in a README."""

from flowkern.ops._activation import Activation
from flowkern.ops._affine_coupling import ScaleMap, affine_coupling
from flowkern.ops._masked_autoregressive import (
    AffineElement,
    ContextTerm,
    Degrees,
    MaskedLayer,
    SplineElement,
    masked_autoregressive,
)
from flowkern.ops._neural_ode import FieldLayer, Solution, TimeEmbedding, neural_ode
from flowkern.ops._probability_path import probability_path
from flowkern.ops._rational_quadratic_spline import SoftclipKnots, SoftplusKnots, rational_quadratic_spline
from flowkern.ops._runge_kutta_stage import runge_kutta_error, runge_kutta_stage

__all__ = [
    "Activation",
    "AffineElement",
    "ContextTerm",
    "Degrees",
    "FieldLayer",
    "MaskedLayer",
    "ScaleMap",
    "SoftclipKnots",
    "SoftplusKnots",
    "Solution",
    "SplineElement",
    "TimeEmbedding",
    "affine_coupling",
    "masked_autoregressive",
    "neural_ode",
    "probability_path",
    "rational_quadratic_spline",
    "runge_kutta_error",
    "runge_kutta_stage",
]

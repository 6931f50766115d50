"""The fused ops. Each lives in a folder of its own, with its derivation in a README."""

from flowkern.ops.affine_coupling import ScaleMap, affine_coupling
from flowkern.ops.rational_quadratic_spline import KnotMap, rational_quadratic_spline

__all__ = ["KnotMap", "ScaleMap", "affine_coupling", "rational_quadratic_spline"]

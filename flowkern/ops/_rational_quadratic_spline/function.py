"""The rational-quadratic spline as one call, and its derivatives."""

from types import ModuleType

from flowkern.ops._function import Coupling
from flowkern.ops._rational_quadratic_spline import native, reference


def _triton() -> ModuleType:
    from flowkern.ops._rational_quadratic_spline import triton

    return triton


rule = Coupling(native, reference, _triton)
apply = rule.apply

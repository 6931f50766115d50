"""The affine coupling as one call, and its derivatives."""

from types import ModuleType

from flowkern.ops._affine_coupling import native, reference
from flowkern.ops._function import Coupling


def _triton() -> ModuleType:
    from flowkern.ops._affine_coupling import triton

    return triton


rule = Coupling(native, reference, _triton)
apply = rule.apply

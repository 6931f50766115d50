"""Autoregressive layers of normflows 1.7, each as one fused op.

normflows goes from noise to data: the `forward` of these layers, their one pass, samples. The
wrapper AutoregressiveRationalQuadraticSpline, which turns a layer round, needs nothing of its own; its circular
sibling gives its layer a list of tails, which has no kernel.
"""

import numbers
import re

from flowkern.adapters import _made
from flowkern.adapters._plan import Plan, qualified_name
from flowkern.ops import AffineElement, ScaleMap

HANDLES = "normflows: MaskedAffineAutoregressive and MaskedPiecewiseRationalQuadraticAutoregressive"
_PACKAGE = re.compile(r"(?:.*\.)?normflows\.")
_CONTAINERS = frozenset(
    (
        "flows.base.Reverse",
        "flows.base.Composite",
        "flows.neural_spline.wrapper.AutoregressiveRationalQuadraticSpline",
        "flows.neural_spline.wrapper.CircularAutoregressiveRationalQuadraticSpline",
        "flows.neural_spline.wrapper.CoupledRationalQuadraticSpline",
        "flows.neural_spline.wrapper.CircularCoupledRationalQuadraticSpline",
    )
)
_SIGMOID = AffineElement(ScaleMap("sigmoid", a=2.0, b=1e-3), scale_first=True)


def plan(module):
    """The `Plan` for a flow layer of normflows, or None for other modules and mere containers."""
    names = [_name(cls) for cls in type(module).__mro__]
    if "flows.base.Flow" not in names or _CONTAINERS.intersection(names):
        return None
    kind = _KINDS.get(next(filter(None, names)))
    if kind is None:
        return Plan({}, "there is no fused kernel for this layer")
    return _made.plan(_MADE, kind, module)


def _name(cls):
    """A class's qualified name from behind `normflows.`, or None for others' classes."""
    return qualified_name(_PACKAGE, cls)


def _sigmoid(module):
    return _SIGMOID


def _unsuitable_spline(module):
    if module.tails not in (None, "linear", "circular"):
        return "its tails are a list, with which normflows maps what lies outside the interval to 0"
    if not isinstance(module.tail_bound, numbers.Real):
        return f"its tail_bound is no plain number but {type(module.tail_bound).__name__}"
    return None


_MADE = _made.MadeStyle(_name, "nets.made", gated=True)
_KINDS = {
    "flows.affine.autoregressive.MaskedAffineAutoregressive": _made.Kind(_sigmoid, ("_unconstrained_scale_and_shift",)),
    "flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": _made.Kind(
        _made.spline, ("_elementwise",), _unsuitable_spline
    ),
}

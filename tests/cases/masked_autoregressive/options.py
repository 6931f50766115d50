"""Every option of the op, see tests/options.py."""

import inspect
import itertools

from flowkern import ops
from flowkern.ops import AffineElement, ContextTerm, MaskedLayer, SplineElement
from flowkern.ops._activation import NAMES as ACTIVATIONS
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS
from tests.cases.masked_autoregressive import Case
from tests.cases.space import BINS, BOTH, DIRECTED, Space, text

_OPTIONS = {
    **DIRECTED,
    "element": (*SCALE_MAPS, *itertools.product(TAILS, KNOT_MAPS)),
    "scale_first": BOTH,
    "bins": BINS[:-1],
    "features": (1, 2, 5, 17),
    "order": ("natural", "reversed", "random", 1, 2, 3),
    "hidden": ((), (1,), (7,), (12, 9), (5, 17, 4)),
    "activation": ACTIVATIONS,
    "skip": (False, True, ((2, 1), (3, 0), (4, 0))),
    **dict.fromkeys(("bias", "rows", "gate", "norm"), BOTH),
    "inputs": (None, 0, 1, 5),
    "of_context": ACTIVATIONS,
}


def _case(choice):
    arguments = {name: value for name, value in choice.items() if name in Case.__dataclass_fields__}
    element = choice["element"]
    if element in SCALE_MAPS:
        per_feature = 1 if element == "additive" else 2
        element = AffineElement(element, choice["scale_first"])
    else:
        tails, knots = element
        per_feature = 3 * choice["bins"] + TAILS[tails].more
        # Tails of NaN have no values to compare: there all features are inside.
        element = SplineElement(30.0 if tails == "none" else 3.0, tails, knots)
    if choice["skip"]:
        arguments["hidden"] = (choice["hidden"] or (6,))[:1] * 5
    order = choice["order"] if isinstance(choice["order"], str) else min(choice["order"], choice["features"])
    arguments |= {"element": element, "per_feature": per_feature, "order": order, "residual": choice["skip"]}
    # Gentle, so that the inverse of many features stays well conditioned.
    arguments["spread"] = 0.5
    return Case(text(choice), **arguments)


SPACE = Space(_OPTIONS, _case)
ARGUMENTS = {
    *inspect.signature(ops.masked_autoregressive).parameters,
    *(name for of in (MaskedLayer, ContextTerm, AffineElement, SplineElement) for name in of._fields),
}
DATA = {
    *("x", "layers", "degrees", "weight", "offset", "gain", "context"),
    *("tails", "bound", "knot_map", "scale_map"),
}  # what has no option of its own, or is fixed by another option

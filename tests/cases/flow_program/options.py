"""Every option of the op, see tests/options.py."""

import inspect
import itertools

from flowkern.ops import AffineElement, SplineElement
from flowkern.ops._activation import NAMES as ACTIVATIONS
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._flow_program import (
    LU,
    Conditioned,
    ConditionerLayer,
    Linear,
    Permutation,
    Program,
    Scale,
    flow_program,
)
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS
from tests.cases.flow_program import Case, autoregressive, coupling
from tests.cases.space import BOTH, COMMON, Space

_OTHERS = {
    "nothing": lambda features, inverse: (),
    "lu": lambda features, inverse: (LU(1e-3, inverse=inverse),),
    "lu without a bias": lambda features, inverse: (LU(1e-2, bias=False, inverse=inverse),),
    "permutation": lambda features, inverse: (Permutation((*range(1, features), 0), inverse),),
    "scale": lambda features, inverse: (Scale(inverse=inverse),),
    "linear": lambda features, inverse: (Linear(inverse=inverse),),
    "rotation": lambda features, inverse: (Linear(orthogonal=True, inverse=inverse),),
    "logarithms of scales": lambda features, inverse: (Scale(logarithmic=True, shift=False, inverse=inverse),),
}
_OPTIONS = {
    **COMMON,
    "inverse": BOTH,
    "features": (2, 5, 17),
    "context": (0, 1, 5),
    "base": (None, "normal"),
    "step": (autoregressive, coupling),
    "element": (*SCALE_MAPS, *itertools.product(TAILS, KNOT_MAPS)),
    "bins": (1, 5, 8, 10),
    "step_inverse": BOTH,
    "before": tuple(_OTHERS),
    "after": tuple(_OTHERS),
    "width": (1, 7, 20),
    "depth": (0, 1, 3),
    "activation": ACTIVATIONS,
    **dict.fromkeys(("residual", "gated", "joint", "interleaved", "bare"), BOTH),
}


def _element(choice):
    """The element, and how many parameters it has."""
    element = choice["element"]
    if element in SCALE_MAPS:
        return AffineElement(element), 1 if element == "additive" else 2
    tails, knots = element
    # Tails of NaN have no values to compare: there all features are inside.
    return SplineElement(60.0 if tails == "none" else 3.0, tails, knots), 3 * choice["bins"] + TAILS[tails].more


def _case(choice):
    features, inverse = choice["features"], choice["step_inverse"]
    network = {name: choice[name] for name in ("width", "depth", "activation", "residual", "gated", "joint", "bare")}
    if choice["step"] is coupling:
        network["interleaved"] = choice["interleaved"]
    else:
        network.pop("joint")
    step = choice["step"](features, *_element(choice), inverse=inverse, context=choice["context"] > 0, **network)
    steps = (*_OTHERS[choice["before"]](features, inverse), step, *_OTHERS[choice["after"]](features, not inverse))
    return Case(features, steps, choice["context"], choice["base"], choice["batch"])


SPACE = Space(_OPTIONS, _case)
ARGUMENTS = {
    *inspect.signature(flow_program).parameters,
    *inspect.signature(Program).parameters,
    *(name for of in (Conditioned, ConditionerLayer, LU, Permutation, Scale, Linear) for name in of._fields),
}
DATA = {
    # What has no option of its own, or is fixed by another option.
    *("x", "program", "tensors", "steps", "layers", "degrees", "parameters", "outputs", "inputs"),
    *("skip", "term", "gate", "order", "epsilon", "bias", "logarithmic", "orthogonal", "shift"),
}

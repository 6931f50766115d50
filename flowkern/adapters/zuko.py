"""Layers of zuko 1.6: masked autoregressive ones, each as one fused op, and those of _zuko_ode.py.

A layer of zuko is a module that returns a transform: `t(c)` is one of y = f(x | c). The fused layer
returns a transform of the same class, which runs on the op (_zuko_transform.py).
"""

import functools
import math
import numbers
import re

from torch import nn

from flowkern.adapters import _zuko_ode
from flowkern.adapters._masked import (
    Inspection,
    activation_of,
    class_of,
    dtype_of,
    has_own_forward,
    network,
    parameter,
    parts,
    plain_masks,
    takes,
)
from flowkern.adapters._plan import Plan, disagreement, overridden, points, stranger
from flowkern.adapters._zuko_ode import name as _name
from flowkern.adapters._zuko_ode import ode_error, solves
from flowkern.ops import (
    AffineElement,
    ContextTerm,
    MaskedLayer,
    ScaleMap,
    SoftclipKnots,
    SplineElement,
)
from flowkern.ops._arguments import in_dtype
from flowkern.ops._masked_autoregressive import evaluate

__all__ = ["HANDLES", "ode_error", "plan", "solves"]

HANDLES = (
    "zuko: MaskedAutoregressiveTransform (MAF, NSF) with affine, additive or spline univariate, and, if "
    "asked by ode=…, FFJTransform (CNF)"
)
_CONTAINERS = frozenset(("lazy.LazyComposedTransform", "lazy.LazyInverse"))
_LAYER = "flows.autoregressive.MaskedAutoregressiveTransform"


# The layer's method.


def _forward(inspection, module, c=None):
    """The transform of x given c (…, context)."""
    found = inspection(module)[1]
    if isinstance(found, str) or found.busy() or (c is None) != (_context(module) == 0):
        return type(module).forward(module, c)
    from flowkern.adapters._zuko_transform import FusedAutoregressiveTransform

    call = functools.partial(_evaluate, inspection, module, c)
    return FusedAutoregressiveTransform(call, functools.partial(module.meta, c), module.passes)


def _evaluate(inspection, module, c, x, inverse):
    """y and the log-det at x, or x and the log-det at y; None where zuko must compute them."""
    linears, found = inspection(module)
    if isinstance(found, str) or found.busy():
        return None
    features = _features(module)
    dtype = dtype_of(linears[0])
    if x.dim() < 1 or x.shape[-1] != features or x.dtype != dtype or x.is_complex():
        return None
    if c is not None and not takes(_context(module), dtype, c):
        return None
    layers = _layers(module.hyper, features, linears, found.exact, c)
    y, logabsdet = evaluate(x, layers, found.degrees, _element(module), inverse)
    return y, in_dtype(logabsdet, dtype)


def _features(module):
    return module.hyper.out_features // module.total


def _context(module):
    return module.hyper.in_features - _features(module)


def _layers(hyper, features, linears, exact, c):
    """The op's layers of a MaskedMLP: a block adds its input, which no activation has changed."""
    tensors = []
    for linear, enough in zip(linears, exact):
        weight, bias = parameter(linear, "weight"), parameter(linear, "bias")
        tensors.append((weight if enough else weight * linear.mask, bias))
    weight, bias = tensors[0]
    term = None if c is None else ContextTerm(c, weight[:, features:])
    tensors[0] = weight[:, :features], bias
    tensors, layers = iter(tensors), []
    for part in hyper._modules.values():
        if isinstance(part, nn.Sequential):
            layers.append(MaskedLayer(*next(tensors), activation_of(part[1])))
            layers.append(MaskedLayer(*next(tensors), skip=len(layers) - 2))
        elif isinstance(part, nn.Linear):
            layers.append(MaskedLayer(*next(tensors)))
        else:
            layers[-1] = layers[-1]._replace(activation=activation_of(part))
    layers[0] = layers[0]._replace(context=term)
    return layers


# The element transform.


def _element(module):
    """The element that computes the layer's univariate transform, or None if there is none."""
    univariate, options = module.univariate, {}
    if isinstance(univariate, functools.partial) and not univariate.args:
        univariate, options = univariate.func, univariate.keywords
    if not all(isinstance(value, numbers.Real) for value in options.values()):
        return None
    return _element_of(univariate, tuple(options.items()), tuple(map(tuple, module.shapes)))


@functools.lru_cache(256)
def _element_of(univariate, options, shapes):
    name = hasattr(univariate, "__qualname__") and _name(univariate)
    options = {"slope": 1e-3, **dict(options)}
    slope, known = options.pop("slope"), {"transforms.MonotonicRQSTransform": {"bound"}}
    if not 0 < slope < 1 or options.keys() - known.get(name, ()):
        return None
    if name == "transforms.AdditiveTransform" and shapes == ((),):
        return AffineElement("additive")
    if name == "transforms.MonotonicAffineTransform" and shapes == ((), ()):
        return AffineElement(ScaleMap("softclip", a=-math.log(slope)))
    if name == "transforms.MonotonicRQSTransform" and _is_spline(shapes):
        return SplineElement(options.get("bound", 5.0), "identity", SoftclipKnots(slope))
    return None


def _is_spline(shapes):
    """Whether they are those of K widths, K heights and K − 1 slopes."""
    bins = shapes[0][0] if shapes and len(shapes[0]) == 1 else 0
    return bins > 0 and shapes == ((bins,), (bins,), (bins - 1,))


# Which layers are accelerated.


def plan(module):
    """The `Plan` for a lazy transform of zuko, or None for other modules and mere containers."""
    names = [_name(cls) for cls in type(module).__mro__]
    if "lazy.LazyTransform" not in names or _CONTAINERS.intersection(names):
        return None
    if next(filter(None, names)) == _zuko_ode.LAYER:
        return _zuko_ode.plan(module)
    if next(filter(None, names)) != _LAYER:
        return Plan({}, "there is no fused kernel for this layer")
    inspection = Inspection(_linears, _inspect, _unfit, ("meta",))
    reason = (
        overridden(module, ("forward", "meta"), _name)
        or inspection.left(module)
        or disagreement(functools.partial(_comparisons, module))
    )
    return Plan({}, reason) if reason else Plan({"forward": functools.partial(_forward, inspection)})


def _linears(module):
    """The masked layers of the module's network, in order."""
    linears = []
    for part in module.hyper._modules.values():
        if isinstance(part, nn.Sequential):
            linears += (inner for inner in part if isinstance(inner, nn.Linear))
        elif isinstance(part, nn.Linear):
            linears.append(part)
    return linears


def _inspect(module):
    reason = _unfamiliar(module)
    if reason:
        return reason
    features, skips = _features(module), []
    for part in module.hyper:
        if isinstance(part, nn.Sequential):
            skips += (None, len(skips) - 1)
        elif isinstance(part, nn.Linear):
            skips.append(None)
    first, *others = plain_masks(_linears(module))
    found = network(module.hyper, [first[:, :features], *others], skips)
    if isinstance(found, str):
        return found
    if found.degrees.levels > module.passes:
        return f"its {module.passes} passes do not reach all of {found.degrees.levels} levels"
    exact = found.exact[0] and bool((first[:, features:] == 1).all())
    return found._replace(exact=(exact, *found.exact[1:]))


def _unfamiliar(module):
    """Why the layer has another network than can be fused, or None."""
    hyper = module.hyper
    if _name(type(hyper)) != "nn.MaskedMLP":
        return f"its network is no MaskedMLP but {type(hyper).__name__}"
    for _, part in parts(hyper):
        known = _name(class_of(part)) in ("nn.MaskedMLP", "nn.MaskedLinear", "nn.Residual")
        if not known and activation_of(part) is None:
            return f"its network holds {type(part).__name__}"
        if has_own_forward(part):
            return f"its network holds a {type(part).__name__} with a forward of its own"
    blocks = [part for part in hyper if isinstance(part, nn.Sequential)]
    if not re.fullmatch("L((A|R*)L)*", _kinds(hyper)) or {*map(_kinds, blocks)} - {"LAL"}:
        return "its network has its parts in another order"
    return None


def _kinds(parts):
    """A letter for each: Linear, Residual, Activation."""
    return "".join("R" if isinstance(p, nn.Sequential) else "AL"[isinstance(p, nn.Linear)] for p in parts)


def _unfit(module):
    """Why there is no kernel for a setting of the layer, which may change at any time; or None."""
    if _element(module) is None:
        univariate = getattr(module.univariate, "func", module.univariate)
        name = getattr(univariate, "__name__", type(univariate).__name__)
        return f"there is no fused kernel for its univariate transform {name}"
    return None


def _comparisons(module):
    """A layer with such a structure against the fused one, and its inverse against its forward.

    zuko's inverse takes a pass for each level; that its last pass undoes the forward is enough,
    because the op's inverse undoes the op's forward.
    """
    copied, inspection = stranger(module), Inspection(_linears, _inspect, _unfit, ())
    x, width = points(_features(module), low=-6.0, high=6.0), _context(module)
    c = points(width) if width else None
    wanted = type(module).forward(copied, c).call_and_ladj(x)
    yield "forward", wanted, _evaluate(inspection, copied, c, x, False)
    yield "inverse", [copied.meta(c, x).inv(wanted[0])], [x]

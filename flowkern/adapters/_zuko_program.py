"""zuko's LazyComposedTransform and Flow: all their transforms as one program (_program.py).

Both are modules that return a transform or a distribution given a context. The fused ones return
objects of zuko's classes (_zuko_transform.py), which make what zuko itself would return only when asked
for what the program does not compute.
"""

import functools

import torch
from torch import nn

from flowkern import programs
from flowkern.adapters import zuko
from flowkern.adapters._masked import activation_of, has_own_forward
from flowkern.adapters._network import masked
from flowkern.adapters._plan import Plan, changed, disagreement, overridden, points, stranger
from flowkern.adapters._trust import agreed, bare, strip
from flowkern.adapters._zuko_ode import name as name_of
from flowkern.ops import Degrees
from flowkern.ops._flow_program import Conditioned, Linear, Permutation, Program, Scale, evaluate
from flowkern.programs import (
    NO_TERM,
    Computed,
    Found,
    Fusion,
    Part,
    Reader,
    hooked,
    layer,
    missing,
    on_rows,
    pieces,
    run,
    slots,
    stacked,
    why,
)

HANDLES = "LazyComposedTransform and Flow of zuko, whose transforms run in one call"
_COMPOSED, _INVERSE = "lazy.LazyComposedTransform", "lazy.LazyInverse"
_WATCHED = frozenset(("mask", "order"))


# The methods that take the place of zuko's.


def _transform(fusion, module, c=None):
    """LazyComposedTransform.forward."""
    if torch.compiler.is_compiling():
        return type(module).forward(module, c)
    from flowkern.adapters._zuko_transform import FusedComposedTransform

    call = functools.partial(_evaluate, fusion, module, c)
    return FusedComposedTransform(call, functools.partial(type(module).forward, module, c))


def _flow(fusion, module, c=None):
    """Flow.forward."""
    if torch.compiler.is_compiling():
        return type(module).forward(module, c)
    from flowkern.adapters._zuko_transform import FusedFlow

    density = functools.partial(_log_prob, fusion, module, c)
    return FusedFlow(density, functools.partial(type(module).forward, module, c))


def _log_prob(fusion, module, c, x):
    """log p(x | c), or None where zuko must compute it."""
    found = _evaluate(fusion, module, c, x, False)
    return found and found[1]


def _evaluate(fusion, module, c, x, inverse):
    """y and the log-det at x, or x and the log-det at y; None where zuko must compute them."""
    result = programs.known(fusion, module, x)
    if not isinstance(result, tuple) or result[c is not None] is None:
        return None
    return on_rows(functools.partial(run, result[c is not None], _call), x, c, inverse)


def _call(module, inverse, x, c):
    """y and the log-det of a transform that has no step, by its own call."""
    transform = module(c)
    y, ladj = (transform.inv if inverse else transform).call_and_ladj(x)
    return y, ladj if ladj.dim() == 1 else ladj.sum(-1)


# Which modules are accelerated.


def plan(module):
    """The `Plan` for a LazyComposedTransform or a Flow of zuko that is one program, else None."""
    names = [name_of(cls) for cls in type(module).__mro__]
    if _COMPOSED in names:
        fusion, method = Fusion(_of_transform), _transform
    elif "lazy.Flow" in names:
        fusion, method = Fusion(_of_flow), _flow
    else:
        return None
    return None if isinstance(fusion(module), str) else Plan({"forward": functools.partial(method, fusion)})


def _of_transform(module):
    reason = overridden(bare(module), ("forward",), name_of)
    return Found(reason, (module,)) if reason else _found(module, module, [], None, module.modules())


def _of_flow(module):
    reason = overridden(bare(module), ("forward",), name_of) or _other_base(module.base)
    if reason:
        return Found(reason, (module, module.base))
    return _found(module, module.transform, _standardising(module.base), "normal", module.modules())


def _found(module, transform, last, base, modules):
    leaves = list(_leaves(transform, False, transform is module))
    strange = {id(inner) for leaf, _ in leaves if _kind(leaf) not in _PARTS for inner in leaf.modules()}
    watched = [inner for inner in modules if id(inner) not in strange]
    variants = [pieces(_parts(leaves, with_context) + last, base) for with_context in (False, True)]
    found = tuple(map(_whole if base else _worthwhile, variants))
    result = found if any(found) else why(variants)
    buffers = [(m._buffers, key) for m in watched for key in m._buffers]
    return Found(result, watched, (*buffers, *missing(watched)))


def _whole(found):
    return found if len(found) == 1 and found[0].fused else None


def _worthwhile(found):
    return found if any(piece.fused for piece in found) else None


def _leaves(module, inverted, is_root=False):
    """(transform, whether it is inverted) of all transforms in a container, in order."""
    name = name_of(type(module))
    plain = is_root or not hooked([module]) and not overridden(bare(module), ("forward",), name_of)
    if name in (_COMPOSED, _INVERSE) and plain:
        inner = [module.transform] if name == _INVERSE else list(module.transforms)
        for transform in reversed(inner) if inverted else inner:
            yield from _leaves(transform, inverted != (name == _INVERSE))
    else:
        yield module, inverted


def _parts(leaves, with_context):
    return [((leaf, inverted), _part(leaf, with_context)) for leaf, inverted in leaves]


def _kind(module):
    return next(filter(None, map(name_of, type(module).__mro__)), None)


def _part(module, with_context):
    """The `Part` of a transform, or why it has none."""
    read = _PARTS.get(_kind(module))
    if read is None:
        return "there is no step for it"
    methods = ("forward", "meta") if hasattr(module, "meta") else ("forward",)
    reason = changed(module, ("meta",)) or overridden(bare(module), methods, name_of)
    if reason or hooked(module.modules()):
        return reason or "it has hooks"
    part = read(module, with_context)
    if isinstance(part, str):
        return part
    return agreed(module, part, part.features, functools.partial(_comparisons, module, with_context)) or part


def _comparisons(module, with_context):
    """A transform with such a structure, by zuko's transform and by a program."""
    copied = strip(stranger(module))
    part = _PARTS[_kind(module)](copied, with_context)
    program = Program(part.features, part.steps, part.context)
    x = points(part.features, low=-6.0, high=6.0)
    c = points(part.context) if part.context else None
    wanted = type(module).forward(copied, c)
    y, ladj = wanted.call_and_ladj(x)
    ladj = ladj if ladj.dim() == 1 else ladj.sum(-1)
    run = functools.partial(evaluate, program=program, tensors=Reader(part.slots)(x.dtype), context=c)
    yield "forward", (y, ladj), run(x, inverse=False)
    if hasattr(copied, "meta") and not hasattr(wanted, "idx_a"):  # of many passes the last is enough
        yield "inverse", [copied.meta(c, x).inv(y)], [x]
    else:
        yield "inverse", [wanted.inv(x)], run(x, inverse=True)


# What each transform adds to a program.


def _autoregressive(module, with_context):
    found = zuko._inspect(module)
    if isinstance(found, str):
        return found
    features, context = zuko._features(module), zuko._context(module)
    reason = zuko._unfit(module) or found.busy() or _other_context(context, with_context)
    if reason:
        return reason
    layers = _layers(module.hyper, [masked(*pair) for pair in zip(zuko._linears(module), found.exact)], context)
    specs, tensors = stacked(layers)
    step = Conditioned(specs, found.degrees, zuko._element(module), module.total)
    return Part((step,), tensors, context, features)


def _layers(hyper, linears, context):
    """[`layer`] of an MLP, masked or not; a residual block adds its input, which no activation has changed."""
    linears, layers = iter(linears), []
    for part in hyper._modules.values():
        if isinstance(part, nn.Sequential):
            layers.append(layer(next(linears), activation=activation_of(part[1])))
            layers.append(layer(next(linears), skip=len(layers) - 2))
        elif activation_of(part) is None:
            first = context and not layers
            term = ("identity", None, None) if first else NO_TERM
            layers.append(layer(next(linears), term, joint=bool(first)))
        else:
            spec, tensors = layers[-1]
            layers[-1] = spec._replace(activation=activation_of(part)), tensors
    return layers


def _other_context(context, with_context):
    if bool(context) == with_context:
        return None
    return "its network takes a context" if context else "its network takes no context"


def _coupling(module, with_context):
    hyper, mask = module.hyper, module.mask.tolist()
    parts = list(hyper)
    linears = [part for part in parts if name_of(type(part)) == "nn.Linear"]
    others = [part for part in parts if name_of(type(part)) != "nn.Linear"]
    if name_of(type(hyper)) != "nn.MLP" or any(map(has_own_forward, (hyper, *parts))):
        return f"its network is no MLP but {type(hyper).__name__}"
    if not all(map(activation_of, others)) or any(linear.weight.dim() != 2 for linear in linears):
        return "its network holds something else than layers and activations with a kernel"
    if not linears or parts[0] is not linears[0] or parts[-1] is not linears[-1]:
        return "its network has its parts in another order"
    if zuko._element(module) is None:
        return zuko._unfit(module)
    identity, transformed = ([i for i, m in enumerate(mask) if m == kept] for kept in (True, False))
    context = hyper.in_features - len(identity)
    reason = _other_context(context, with_context)
    if reason:
        return reason
    specs, tensors = stacked(_layers(hyper, map(slots, linears), context))
    degrees = Degrees([1 if kept else 2 for kept in mask], [[1] * linear.out_features for linear in linears[:-1]])
    step = Conditioned(
        specs, degrees, zuko._element(module), module.total, tuple(transformed), tuple(identity)
    )  # fmt: skip
    return Part((step,), tensors, context, len(mask))


def _unconditional(module, with_context):
    """torch's AffineTransform and zuko's linear transforms with tensors of the module."""
    if module.f is torch.distributions.AffineTransform:
        return _affine(module)
    if name_of(module.f) == "transforms.PermutationTransform":
        values = [*module.args, *module.kwargs.values()]
        if len(values) != 1 or values[0].dim() != 1:
            return "no vector"
        return Part((Permutation(tuple(values[0].tolist())),), features=len(values[0]))
    if name_of(module.f) in _MATRICES:
        return _matrix(module, *_MATRICES[name_of(module.f)])
    return f"there is no step for {getattr(module.f, '__name__', module.f)}"


def _matrix(module, step, functions):
    """A transform that multiplies by what the functions make of a matrix."""
    held = {name: held for held in (module._parameters, module._buffers) for name in held}
    if len(held) != 1:
        return "its matrix is no tensor of the module"
    ((name, place),) = held.items()
    if place[name].dim() != 2:
        return "it has several matrices"
    return Part((step,), tuple(Computed(f, ((place, name),)) for f in functions), features=place[name].shape[0])


def _rotation(dtype, A):
    return torch.linalg.matrix_exp(A - A.mT)


def _triangles(LU):
    return LU.tril(), LU.triu(1) + torch.eye(LU.shape[0], dtype=LU.dtype)


def _product(dtype, LU):
    lower, upper = _triangles(LU)
    return lower @ upper


def _inverse_product(dtype, LU):
    lower, upper = _triangles(LU)
    one = torch.eye(LU.shape[0], dtype=dtype)
    solved = torch.linalg.solve_triangular(lower, one, upper=False)
    return torch.linalg.solve_triangular(upper, solved, upper=True, unitriangular=True)


def _log_determinant(dtype, LU):
    return LU.diagonal().abs().log().sum().reshape(1)


# name of a transform: (its step, what makes the step's tensors out of the transform's own)
_MATRICES = {
    "transforms.RotationTransform": (Linear(orthogonal=True), (_rotation,)),
    "transforms.LULinearTransform": (Linear(), (_product, _inverse_product, _log_determinant)),
}


def _affine(module):
    names = (*(f"_{i}" for i in range(module._nargs)), *module._keys)
    places = {name: (held, name) for name in names for held in (module._parameters, module._buffers) if name in held}
    given = dict(zip(("loc", "scale", "event_dim"), names[: module._nargs])) | {key: key for key in module._keys}
    loc, scale = places.get(given.get("loc")), places.get(given.get("scale"))
    if loc is None or scale is None or given.keys() - {"loc", "scale", "event_dim"}:
        return "its location and scale are no tensors of the module"
    shapes = {held[name].shape for held, name in (loc, scale)}
    if len(shapes) != 1 or len(*shapes) != 1:
        return "its location and scale are no vectors"
    return Part((Scale(),), (scale, loc), features=shapes.pop()[0])


_PARTS = {
    "flows.autoregressive.MaskedAutoregressiveTransform": _autoregressive,
    "flows.coupling.GeneralCouplingTransform": _coupling,
    "lazy.UnconditionalTransform": _unconditional,
}


# The base distribution.


def _other_base(base):
    """Why the base is not a normal distribution with a location and a scale for each feature, or None."""
    if _kind(base) != "lazy.UnconditionalDistribution" or hooked([base]):
        return f"its base is {type(base).__name__}"
    if (
        name_of(base.f) != "distributions.DiagNormal"
        or {*base._buffers, *base._parameters} != {"loc", "scale"}
        or base._keys != ["loc", "scale"]
        or base.loc.dim() != 1
        or base.loc.shape != base.scale.shape
    ):
        return "its base is no normal distribution with a location and a scale for each feature"
    return overridden(base, ("forward",), name_of) or disagreement(functools.partial(_bases, base))


def _standardising(base):
    """What comes before a standard normal distribution: z = (y − loc)/scale; nothing where that is the identity."""
    held = [base._parameters if name in base._parameters else base._buffers for name in ("scale", "loc")]
    standard = held == [base._buffers] * 2 and bool((base.loc == 0).all() and (base.scale == 1).all())
    slots = tuple(zip(held, ("scale", "loc")))
    return [] if standard else [((base, False), Part((Scale(inverse=True),), slots, features=base.loc.shape[0]))]


def _bases(base):
    z = points(*base.loc.shape)
    loc, scale = (t.detach().cpu().double() for t in (base.loc, base.scale))
    normal = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
    yield "base", [type(base).forward(base).log_prob(z)], [normal]

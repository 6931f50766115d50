"""nflows' CompositeTransform and Flow: consecutive transforms as one program (_program.py)."""

import functools

import torch
from torch import nn

from flowkern import programs
from flowkern.adapters import _nflows_parts
from flowkern.adapters._nflows_parts import name_of, part_of, watched
from flowkern.adapters._plan import Plan, disagreement, overridden, points
from flowkern.adapters._trust import bare
from flowkern.ops._flow_program import Scale
from flowkern.programs import Computed, Found, Fusion, Part, Segment, hooked, pieces, run, why

HANDLES = "CompositeTransform and Flow of nflows, whose transforms run in one call"
_COMPOSITE, _INVERSE = "transforms.base.CompositeTransform", "transforms.base.InverseTransform"
_NORMAL, _DIAGONAL = "distributions.normal.StandardNormal", "distributions.normal.DiagonalNormal"


# The methods that take the place of the library's.


def _transform(fusion, inverse, module, inputs, context=None):
    """CompositeTransform.forward or .inverse."""
    found = programs.known(fusion, module, inputs)
    pieces = found[context is not None] if isinstance(found, tuple) else None
    result = pieces and run(pieces, _call, inputs, context, inverse)
    return result or (type(module).inverse if inverse else type(module).forward)(module, inputs, context)


def _call(module, inverse, inputs, context):
    return module.inverse(inputs, context) if inverse else module(inputs, context)


def _log_prob(fusion, module, inputs, context):
    """Flow._log_prob, with the embedding net called as the library does."""
    found = programs.known(fusion, module, inputs)
    if not isinstance(found, tuple):
        return type(module)._log_prob(module, inputs, context)
    context = module._embedding_net(context)
    pieces = found[context is not None]
    result = pieces and pieces[0](inputs, context, False)
    return _density(module, inputs, context) if result is None else result[1]


def _density(module, inputs, context):
    noise, logabsdet = module._transform(inputs, context=context)
    return module._distribution.log_prob(noise, context=context) + logabsdet


# Which modules are accelerated.


def plan(module):
    """The `Plan` for a CompositeTransform or a Flow of nflows of which something runs in one call, else None."""
    names = [name_of(cls) for cls in type(module).__mro__]
    if _COMPOSITE in names:
        fusion = Fusion(_composite)
        methods = {name: functools.partial(_transform, fusion, name == "inverse") for name in ("forward", "inverse")}
    elif "flows.base.Flow" in names:
        fusion = Fusion(_flow)
        methods = {"_log_prob": functools.partial(_log_prob, fusion)}
    else:
        return None
    return None if isinstance(fusion(module), str) else Plan(methods)


def _composite(module):
    """(pieces without a context, pieces with one) of a CompositeTransform, None where no program is in them."""
    if overridden(bare(module), ("forward", "inverse", "_cascade"), name_of):
        return Found(f"{type(module).__name__} overrides its methods", (module,))
    leaves = list(_leaves(module, False, True))
    variants = [pieces(_parts(leaves, with_context)) for with_context in (False, True)]
    found = tuple(map(_worthwhile, variants))
    return _found(module, leaves, variants, found if any(found) else why(variants))


def _worthwhile(found):
    return found if any(isinstance(piece, Segment) for piece in found) else None


def _parts(leaves, with_context):
    features = next((f for leaf, _ in leaves if isinstance(f := getattr(leaf, "features", None), int)), None)
    return [((leaf, inverted), part_of(leaf, with_context, features)) for leaf, inverted in leaves]


def _leaves(module, inverted, is_root=False):
    """(transform, whether it is inverted) of all transforms in a container, in order."""
    name = name_of(type(module))
    if name in (_COMPOSITE, _INVERSE) and (is_root or _is_plain(module)):
        inner = [module._transform] if name == _INVERSE else list(module._transforms)
        for transform in reversed(inner) if inverted else inner:
            yield from _leaves(transform, inverted != (name == _INVERSE))
    else:
        yield module, inverted


def _is_plain(container):
    """Whether calling a container does no more than calling what is in it."""
    methods = ("forward", "inverse", "_cascade") if hasattr(container, "_cascade") else ("forward", "inverse")
    return not hooked([container]) and not overridden(bare(container), methods, name_of)


def _found(module, leaves, variants, result):
    """`Found` of a module, which watches all in it but transforms of which nothing is known."""
    known = {id(leaf) for found in variants for piece in found if piece.fused for leaf, _ in piece.transforms}
    strange = {id(inner) for leaf, _ in leaves if not (id(leaf) in known or watched(leaf)) for inner in leaf.modules()}
    modules = [inner for inner in module.modules() if id(inner) not in strange]
    return Found(result, modules, *_nflows_parts.tensors(modules))


def _flow(module):
    """As `_composite`, of a Flow whose log_prob is one program."""
    transform, base = module._transform, module._distribution
    reason = overridden(bare(module), ("_log_prob", "log_prob"), name_of) or _other_base(base)
    if reason:
        return Found(reason, (module, base))
    leaves = list(_leaves(transform, False))
    last = _standardising(base)
    whole = [pieces(_parts(leaves, with_context) + last, "normal") for with_context in (False, True)]
    segments = tuple(_whole(found, base._shape) for found in whole)
    reason = None if any(segments) else why(whole)
    found = _found(module, leaves, whole, reason or disagreement(functools.partial(_densities, module)) or segments)
    embedding = set(map(id, module._embedding_net.modules()))
    return found._replace(modules=[m for m in found.modules if id(m) not in embedding])


def _whole(found, shape):
    """The pieces, if they are one program of such features."""
    only = len(found) == 1 and isinstance(found[0], Segment) and tuple(shape) == (found[0].program.features,)
    return found if only else None


def _other_base(base):
    """Why the distribution is not nflows' standard or diagonal normal one, or None."""
    if name_of(type(base)) not in (_NORMAL, _DIAGONAL) or hooked([base]):
        return f"its base distribution is {type(base).__name__}"
    return overridden(base, ("log_prob", "_log_prob"), name_of)


def _standardising(base):
    """What comes before a standard normal distribution: z = (y − mean)·exp(−log_std), where the base has these."""
    if name_of(type(base)) == _NORMAL:
        return []
    slots = [Computed(lambda dtype, row: row.flatten(), ((base._parameters, key),)) for key in ("log_std_", "mean_")]
    part = Part((Scale(logarithmic=True, inverse=True),), tuple(slots), features=base._shape.numel())
    return [((base, False), part)]


class _Doubling(nn.Module):
    """Stands in for the transform of a flow in a trial."""

    def forward(self, inputs, context=None):
        return 2 * inputs, inputs.sum(-1)


def _densities(module):
    """The library's log_prob with a stand-in for the transform, and what `Segment` and `_density` make of it."""
    base = bare(module._distribution)
    for store in ("_buffers", "_parameters"):
        base.__dict__[store] = {k: v.detach().cpu().double() for k, v in getattr(base, store).items()}
    mean, log_std = base._parameters.get("mean_", torch.zeros(1)), base._parameters.get("log_std_", torch.zeros(1))
    trial = bare(module)
    trial.__dict__["_modules"] = {"_transform": _Doubling(), "_distribution": base, "_embedding_net": nn.Identity()}
    x = points(base._shape.numel())
    wanted = type(module)._log_prob(trial, x, None)
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(2 * x).sum(-1) + x.sum(-1)
    yield "_log_prob", [wanted, wanted], [normal, _density(trial, x, None)]

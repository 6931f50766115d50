"""normflows' NormalizingFlow: consecutive flow layers as one program (_normflows_parts.py).

Programs go from data to noise, against the direction of the library's layers.
"""

import functools

import torch

from flowkern import programs
from flowkern.adapters import _normflows_parts
from flowkern.adapters._normflows_parts import name_of, part_of, watched
from flowkern.adapters._plan import Plan, disagreement, overridden, points
from flowkern.adapters._trust import bare
from flowkern.ops._flow_program import Scale
from flowkern.programs import Computed, Found, Fusion, Part, Segment, hooked, pieces, run, why

HANDLES = "NormalizingFlow of normflows, whose layers run in one call"
_WRAPPERS = {  # name: what is in it, with forward and inverse exchanged
    "flows.base.Reverse": "flow",
    "flows.neural_spline.wrapper.AutoregressiveRationalQuadraticSpline": "mprqat",
    "flows.neural_spline.wrapper.CircularAutoregressiveRationalQuadraticSpline": "mprqat",
    "flows.neural_spline.wrapper.CoupledRationalQuadraticSpline": "prqct",
    "flows.neural_spline.wrapper.CircularCoupledRationalQuadraticSpline": "prqct",
}
_FLOWS = ("core.NormalizingFlow", "core.ConditionalNormalizingFlow")


# The methods that take the place of the library's.


def _run(fusion, module, x, context, inverse):
    """Noise and log-det of the inverse at x, or x and log-det at noise; None where the library must compute them."""
    found = programs.known(fusion, module, x)
    if not isinstance(found, tuple) or found[context is not None] is None:
        return None
    return run(found[context is not None], _call, x, context, inverse)


def _call(module, inverse, x, context):
    given = {} if context is None else {"context": context}
    return (module.inverse if inverse else module)(x, **given)


def _both(fusion, name, inverse, module, x, context=None):
    """forward_and_log_det and inverse_and_log_det: the log-det in the default dtype, as the library sums it."""
    found = _run(fusion, module, x, context, inverse)
    if found is None:
        return _own(module, name, x, context)
    return found[0], torch.zeros(len(x), device=x.device) + found[1].to(torch.get_default_dtype())


def _first(fusion, name, inverse, module, x, context=None):
    """forward and inverse."""
    found = _run(fusion, module, x, context, inverse)
    return _own(module, name, x, context) if found is None else found[0]


def _own(module, name, x, context):
    given = () if context is None else (context,)
    return getattr(type(module), name)(module, x, *given)


def _log_prob(fusion, transform, module, x, context=None):
    """log_prob, with the base distribution in the call where it is a diagonal normal one."""
    found = programs.known(fusion, module, x)
    whole = found[context is not None] if isinstance(found, tuple) else None
    result = whole and whole[0](x, context, False)
    if result is not None:
        return result[1]
    found = _run(transform, module, x, context, False)
    if found is None:
        return _own(module, "log_prob", x, context)
    given = {} if context is None else {"context": context}
    return found[1] + module.q0.log_prob(found[0], **given)


def _sample(fusion, module, num_samples=1, context=None):
    given = {} if context is None else {"context": context}
    x, log_q = module.q0(num_samples, **given)
    found = _run(fusion, module, x, context, True)
    if found is not None:
        return found[0], log_q - found[1]
    for flow in module.flows:
        x, logabsdet = flow(x, **given)
        log_q = log_q - logabsdet
    return x, log_q


def _forward_kld(fusion, transform, module, x, context=None):
    return -torch.mean(_log_prob(fusion, transform, module, x, context))


def _reverse_kld(fusion, module, num_samples=1, beta=1.0, score_fn=True):
    if not score_fn:
        return type(module).reverse_kld(module, num_samples, beta, score_fn)
    x, log_q = _sample(fusion, module, num_samples)
    return torch.mean(log_q) - beta * torch.mean(module.p.log_prob(x))


def _conditional_reverse_kld(fusion, module, num_samples=1, context=None, beta=1.0, score_fn=True):
    if not score_fn:
        return type(module).reverse_kld(module, num_samples, context, beta, score_fn)
    x, log_q = _sample(fusion, module, num_samples, context)
    return torch.mean(log_q) - beta * torch.mean(module.p.log_prob(x, context=context))


# Which modules are accelerated.


def plan(module):
    """The `Plan` for a NormalizingFlow of normflows of which something runs in one call, else None."""
    names = [name_of(cls) for cls in type(module).__mro__]
    if not set(_FLOWS).intersection(names):
        return None
    density, transform = Fusion(_of_density), Fusion(_of_transform)
    reverse_kld = _conditional_reverse_kld if _FLOWS[1] in names else _reverse_kld
    reason = transform(module)
    if isinstance(reason, str):
        return Plan({}, reason)
    methods = {
        "forward": functools.partial(_first, transform, "forward", True),
        "inverse": functools.partial(_first, transform, "inverse", False),
        "forward_and_log_det": functools.partial(_both, transform, "forward_and_log_det", True),
        "inverse_and_log_det": functools.partial(_both, transform, "inverse_and_log_det", False),
        "log_prob": functools.partial(_log_prob, density, transform),
        "sample": functools.partial(_sample, transform),
        "forward_kld": functools.partial(_forward_kld, density, transform),
        "reverse_kld": functools.partial(reverse_kld, transform),
    }
    return Plan({name: method for name, method in methods.items() if not overridden(bare(module), (name,), name_of)})


def _leaves(module, inverted):
    """(layer, whether it is inverted) of all layers in a container, from data to noise."""
    name = name_of(type(module))
    if name in _WRAPPERS and not hooked([module]) and not overridden(bare(module), ("forward", "inverse"), name_of):
        yield from _leaves(getattr(module, _WRAPPERS[name]), not inverted)
    else:
        yield module, inverted


def _variants(module, last, base):
    leaves = [leaf for flow in reversed(module.flows) for leaf in _leaves(flow, True)]
    features = _features(module, leaves)
    parts = ([(leaf, part_of(leaf[0], with_context, features)) for leaf in leaves] for with_context in (False, True))
    return leaves, [pieces(own + last, base) for own in parts]


def _features(module, leaves):
    """How many features the flow has, where its layers or its base say so."""
    known = [getattr(leaf, "features", None) for leaf, _ in leaves] + [getattr(module.q0, "d", None)]
    return next((int(f) for f in known if f is not None), None)


def _of_transform(module):
    leaves, variants = _variants(module, [], None)
    found = tuple(one if any(piece.fused for piece in one) else None for one in variants)
    return _found(module, leaves, variants, found if any(found) else why(variants))


def _of_density(module):
    base = module.q0
    reason = _other_base(base)
    if reason:
        return Found(reason, (module, base))
    leaves, variants = _variants(module, [((base, False), _standardising(base))], "normal")
    found = tuple(one if len(one) == 1 and isinstance(one[0], Segment) else None for one in variants)
    return _found(module, leaves, variants, found if any(found) else why(variants))


def _found(module, leaves, variants, result):
    """`Found` of a module, which watches all in it but layers of which nothing is known."""
    known = {id(leaf) for found in variants for piece in found if piece.fused for leaf, _ in piece.transforms}
    strange = {id(inner) for leaf, _ in leaves if not (id(leaf) in known or watched(leaf)) for inner in leaf.modules()}
    target = (
        set() if module.p is None or not isinstance(module.p, torch.nn.Module) else set(map(id, module.p.modules()))
    )
    modules = [inner for inner in module.modules() if id(inner) not in strange | target]
    return Found(result, modules, *_normflows_parts.tensors(modules))


def _other_base(base):
    """Why the base has no step, or None."""
    if name_of(type(base)) != "distributions.base.DiagGaussian" or hooked([base]):
        return f"its base distribution is {type(base).__name__}"
    if base.n_dim != 1 or base.temperature is not None:
        return (
            "its base distribution has a temperature" if base.n_dim == 1 else "its base distribution is one of images"
        )
    return overridden(base, ("log_prob",), name_of) or disagreement(functools.partial(_bases, base))


def _standardising(base):
    """z = (y − loc)·exp(−log_scale)."""
    held = [base._parameters if name in base._parameters else base._buffers for name in ("log_scale", "loc")]
    places = [((one, name),) for one, name in zip(held, ("log_scale", "loc"))]
    slots = tuple(Computed(lambda dtype, row: row.flatten(), place) for place in places)
    return Part((Scale(logarithmic=True, inverse=True),), slots, features=int(base.d))


def _bases(base):
    z = points(*base.shape)
    copied = bare(base)
    for store in ("_buffers", "_parameters"):
        copied.__dict__[store] = {k: v.detach().cpu().double() for k, v in getattr(base, store).items()}
    normal = torch.distributions.Normal(copied.loc, copied.log_scale.exp())
    yield "base", [type(base).log_prob(copied, z)], [normal.log_prob(z).sum(-1)]

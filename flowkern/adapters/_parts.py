"""Transforms of nflows and of normflows, which has a copy of it, as steps of a program."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from flowkern.adapters import _made, _traced, nflows
from flowkern.adapters._masked import activation_of, has_own_forward
from flowkern.adapters._network import made, residual
from flowkern.adapters._plan import interval, overridden, points
from flowkern.adapters._trust import bare
from flowkern.ops import Degrees
from flowkern.ops._flow_program import Conditioned, Program, evaluate
from flowkern.programs import NO_TERM, Computed, Part, Reader, layer, outputs, slots, stacked


class Library(NamedTuple):
    """What a library calls the classes that a coupling holds.

    name: class → its name within the library, or None for others' classes.
    networks: the module of its residual network; cdf: its spline with parameters of its own.
    unsuitable: module → why a spline has no kernel, or None.
    """

    name: Callable
    networks: str
    cdf: str
    unsuitable: Callable


def compared(module, part, features, forward, inverse):
    """The results of a transform's own methods, as functions of x and context, beside those of its part."""
    program = Program(features, part.steps, part.context)
    x, context = points(features, **interval(module)), points(part.context) if part.context else None
    run = partial(evaluate, x, program, Reader(part.slots)(x.dtype), context)
    wanted = forward(x, context)
    yield "forward", wanted, run(False)
    if hasattr(module, "autoregressive_net"):  # its inverse takes many passes, of which the last is enough
        back, logabsdet = module._elementwise_inverse(wanted[0], module.autoregressive_net(x, context))
        yield "inverse", (back, -logabsdet), (x, wanted[1])
    else:
        yield "inverse", inverse(x, context), run(True)


def autoregressive(style, kind, module, with_context, features):
    """The `Part` of a masked autoregressive transform, or why it has none; style, kind: as in _made.py."""
    net, found = module.autoregressive_net, _made._inspect(style, module)
    if isinstance(found, str):
        return found
    reason = (kind.unsuitable and kind.unsuitable(module)) or _made._unfit(style, module) or found.busy()
    if reason:
        return reason
    if with_context and "context_layer" not in net._modules:
        return "its network takes no context"
    features, context = found.degrees.sizes[0], net.context_layer.in_features if with_context else 0
    linears = _made._linears(module)
    layers, tensors = stacked(made(style, net, linears, found.exact, with_context))
    step = Conditioned(layers, found.degrees, kind.element(module), linears[-1].out_features // features)
    return Part((step,), tensors, context, features, bounded=is_bounded(module))


def coupling(library, element, interleaved, module, with_context, features):
    """The `Part` of a coupling transform, or why it has none."""
    identity, transformed = (getattr(module, f"{name}_features").tolist() for name in ("identity", "transform"))
    reason = library.unsuitable(module) if hasattr(module, "tails") else None
    if reason or not transformed:
        return reason or "it transforms no feature"
    found = _conditioner(library, module.transform_net, len(identity), with_context)
    if isinstance(found, str):
        return found
    layers, context = found
    specs, tensors = stacked(layers)
    widths = outputs(layers)
    rank = 1 if identity else 0  # of hidden units
    step = Conditioned(
        specs, ranks(module.features, transformed, [[rank] * width for width in widths[:-1]]), element(module),
        widths[-1] // len(transformed), tuple(transformed) if identity else None, tuple(identity), interleaved,
    )  # fmt: skip
    part = Part((step,), tensors, context, module.features, bounded=is_bounded(module))
    return part if module.unconditional_transform is None else _with_unconditional(library, module, part, identity)


def ranks(features, transformed, hidden):
    """`Degrees` of two ranks, or of one where all features are transformed."""
    levels = [2 if feature in transformed and len(transformed) < features else 1 for feature in range(features)]
    return Degrees(levels, hidden)


CACHED = "it caches its matrices"


def caches(module):
    """Whether a linear transform multiplies by matrices that it has kept from an earlier call."""
    return module.using_cache and not module.training


def is_bounded(module):
    """Whether it raises an error outside [0, 1]."""
    return getattr(module, "tails", "linear") is None


def _with_unconditional(library, module, part, identity):
    """The coupling, and then the spline of the identity half."""
    inner = module.unconditional_transform
    if library.cdf not in map(library.name, type(inner).__mro__):
        return "it transforms the identity half, too"
    reason = library.unsuitable(inner) or overridden(bare(inner), nflows._CDF, library.name)
    own = reason or spline_alone(inner, identity, module.features)
    if isinstance(own, str):
        return own
    return part._replace(
        steps=part.steps + own.steps, slots=part.slots + own.slots, bounded=part.bounded or own.bounded
    )


def spline_alone(module, transformed, features):
    """The `Part` of a spline with parameters of its own: a network of one layer that reads nothing, but adds these."""
    raw = [(module._parameters, f"unnormalized_{name}") for name in ("widths", "heights", "derivatives")]
    if module.unnormalized_widths.dim() != 2 or len(transformed) != module.unnormalized_widths.shape[0]:
        return "it transforms images"
    count = sum(held[key].shape[-1] for held, key in raw)
    passive = tuple(feature for feature in range(features) if feature not in transformed)
    no_weight = Computed(lambda dtype: torch.zeros(len(transformed) * count, len(passive), dtype=dtype), ())
    bias = Computed(lambda dtype, *three: torch.cat(three, -1).flatten(), tuple(raw))
    specs, tensors = stacked([layer((no_weight, bias))])
    element = _made._spline(
        module.tails, module.tail_bound, module.min_bin_width, module.min_bin_height, module.min_derivative, 1.0
    )
    outputs = tuple(transformed) if passive else None
    step = Conditioned(specs, ranks(features, transformed, []), element, count, outputs, passive)
    return Part((step,), tensors, 0, features, bounded=is_bounded(module))


def element(module):
    """The `SplineElement` of a coupling."""
    return _made._spline(
        module.tails, module.tail_bound, module.min_bin_width, module.min_bin_height, module.min_derivative,
        nflows._softmax_scale(module.transform_net),
    )  # fmt: skip


def _conditioner(library, net, width, with_context):
    """([`layer`], how many features of the context it reads) of a coupling's network, or why there are none."""
    if any(m.training and getattr(m, "p", 0) > 0 for m in net.modules() if isinstance(m, nn.Dropout)):
        return "its dropout is active"
    if library.name(type(net)) != f"{library.networks}.ResidualNet" or has_own_forward(net):
        return _traced.chain(net, width, with_context)
    inner = list(net.modules())
    strange = next((m for m in inner if not _in_residual_net(library, m) or has_own_forward(m)), None)
    if strange is not None:
        return f"its network holds {type(strange).__name__}"
    if getattr(net, "preprocessing", None) is not None:
        return "its network has a preprocessing"
    norms = [m for m in inner if isinstance(m, nn.BatchNorm1d)]
    if any(norm.training or norm.running_mean is None for norm in norms):
        return "its batch normalisation takes the statistics of the batch"
    if not all(activation_of(block.activation) for block in net.blocks):
        return "its activation has no kernel"
    takes = net.blocks[0].context_layer.in_features if "context_layer" in net.blocks[0]._modules else 0
    if with_context != bool(takes):
        return "its network takes a context" if takes else "its network takes no context"
    return _residual_net(net, takes), takes


def _in_residual_net(library, module):
    known = (nn.Linear, nn.ModuleList, nn.Dropout, nn.BatchNorm1d)
    named = library.name(type(module)) in (f"{library.networks}.ResidualNet", f"{library.networks}.ResidualBlock")
    return named or type(module) in known or activation_of(module) is not None


def _residual_net(net, takes):
    blocks = list(net.blocks)
    first = layer(slots(net.initial_layer), ("identity", None, None) if takes else NO_TERM, joint=bool(takes))
    gates = [("sigmoid", *slots(block.context_layer)) if takes else NO_TERM for block in blocks]
    linears = [tuple(map(slots, block.linear_layers)) for block in blocks]
    return residual(first, blocks, layer(slots(net.final_layer)), linears, [NO_TERM] * len(blocks), gates)

"""Autoregressive layers of nflows and normflows: their MADEs are siblings.

A MADE is an initial masked layer, blocks, and a final one. In a feed-forward block an activation
follows a masked layer, and a batch normalisation may stand before it; in a residual block both
stand before each of two masked layers, and the input of the block is added. The two packages differ
in where the context enters and in the activation after the initial layer: see `MadeStyle`.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from flowkern.adapters._masked import (
    Inspection,
    activation_of,
    class_of,
    dtype_of,
    has_own_forward,
    network,
    normalisation,
    parameter,
    parts,
    plain_masks,
    takes,
)
from flowkern.adapters._plan import Plan, disagreement, interval, overridden, points, stranger
from flowkern.ops import ContextTerm, MaskedLayer, SoftplusKnots, SplineElement
from flowkern.ops._arguments import in_dtype
from flowkern.ops._masked_autoregressive import evaluate

_FORMULAS = ("_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier")
_MASKED = frozenset(("MaskedLinear",))
_KNOWN = {  # what a submodule of that name may be: classes, and names of the library's
    "": frozenset(("MADE",)),
    "initial_layer": _MASKED,
    "final_layer": _MASKED,
    "linear": _MASKED,
    "linear_layers": _MASKED | {nn.ModuleList},
    "blocks": frozenset((nn.ModuleList, "MaskedFeedforwardBlock", "MaskedResidualBlock")),
    "context_layer": frozenset((nn.Linear,)),
    "batch_norm": frozenset((nn.BatchNorm1d,)),
    "batch_norm_layers": frozenset((nn.BatchNorm1d, nn.ModuleList)),
    "dropout": frozenset((nn.Dropout, nn.Identity)),
    "preprocessing": frozenset((nn.Identity,)),
}


class MadeStyle(NamedTuple):
    """One package's MADE.

    name: class → its name within the package, or None for other classes.
    module: the end of the package's module, as `name` gives it.
    gated: whether the context gates what a residual block adds; if not, it is added in its midst,
        the initial layer adds it through the activation, and an activation follows.
    """

    name: Callable
    module: str
    gated: bool


class Kind(NamedTuple):
    """One kind of autoregressive layer.

    element: module -> the element transform of `ops.masked_autoregressive`.
    relies_on: attributes of the library's class that `element` reproduces.
    unsuitable: module -> why this layer cannot be taken, or None.
    check: check(module, inputs) raises what the library raises on bad values.
    """

    element: Callable
    relies_on: tuple
    unsuitable: Callable | None = None
    check: Callable | None = None


# The layer's methods.


def _call(style, kind, inspection, inverse, module, inputs, context=None):
    """y or x, and the log-det, in one pass; by the library's own method where the op does not fit."""
    linears, found = inspection(module)
    net = module._modules["autoregressive_net"]
    if isinstance(found, str) or found.busy() or not _fits(net, linears, inputs, context):
        peers = type(module).inverse if inverse else type(module).forward
        return peers(module, inputs, context)
    if kind.check is not None:
        kind.check(module, inputs)
    layers = _layers(style, net, linears, found.exact, _one_row(context))
    y, logabsdet = evaluate(inputs, layers, found.degrees, kind.element(module), inverse)
    return y, in_dtype(logabsdet, inputs.dtype)


def _fits(net, linears, inputs, context):
    """Whether inputs and context are such that the library would not raise an error, and there is a kernel."""
    first = linears[0]
    return (
        inputs.dim() == 2
        and inputs.shape[1] == first.in_features
        and inputs.dtype == dtype_of(first)
        and not inputs.is_complex()
        and (context is None or _takes(net._modules.get("context_layer"), context))
    )


def _takes(layer, context):
    """Whether layer is one of torch's, and takes such a context."""
    if getattr(type(layer), "forward", None) is not nn.Linear.forward or has_own_forward(layer):
        return False
    return takes(layer.in_features, dtype_of(layer), context)


def _one_row(context):
    """The row of a context that is one row expanded to all samples, as nflows' `sample` makes it.

    Not where its gradient is wanted: that would go to the first row alone.
    """
    if context is None or context.dim() != 2 or context.requires_grad and torch.is_grad_enabled():
        return context
    return context[0] if context.shape[0] > 1 and context.stride(0) == 0 else context


def _layers(style, net, linears, exact, context):
    weights, biases = ([parameter(linear, name) for linear in linears] for name in ("weight", "bias"))
    weights = [w if enough else w * layer.mask for w, enough, layer in zip(weights, exact, linears)]
    blocks = net._modules["blocks"]._modules.values()
    first = _first(style, net, weights[0], biases[0], context)
    build = _residual if _is_residual(linears, blocks) else _feedforward
    layers = build(style, blocks, first, weights, biases, context)
    layers.append(MaskedLayer(weights[-1], biases[-1]))
    return layers


def _is_residual(linears, blocks):
    return len(linears) == 2 + 2 * len(blocks)


def _first(style, net, weight, bias, context):
    if style.gated:
        return MaskedLayer(weight, bias, context=_term(net, context))
    after = activation_of(net.activation)
    activation = "identity" if net.use_residual_blocks else after
    return MaskedLayer(weight, bias, activation, context=_term(net, context, after))


def _term(module, context, activation="identity"):
    """What the module's context layer makes of the context, if there is one."""
    if context is None:
        return None
    layer = module._modules["context_layer"]
    return ContextTerm(context, parameter(layer, "weight"), parameter(layer, "bias"), activation)


def _feedforward(style, blocks, first, weights, biases, context):
    layers = [first]
    for block, weight, bias in zip(blocks, weights[1:], biases[1:]):
        if block.batch_norm is not None:  # it acts on the inputs of weight, which is masked
            gain, offset = normalisation(block.batch_norm)
            weight, bias = weight * gain, bias + F.linear(offset, weight)
        layers.append(MaskedLayer(weight, bias, activation_of(block.activation)))
    return layers


def _residual(style, blocks, first, weights, biases, context):
    layers = [first]
    for block in blocks:
        k, activation = len(layers), activation_of(block.activation)
        before = between = (None, None)
        if block.use_batch_norm:
            before, between = map(normalisation, block.batch_norm_layers)
        term = gate = None
        if context is not None and style.gated:
            gate = torch.sigmoid(block.context_layer(context))
        else:
            term = _term(block, context)
        gain, offset = before
        layers[-1] = layers[-1]._replace(activation=activation, gain=gain, offset=offset)
        layers.append(MaskedLayer(weights[k], biases[k], activation, None, None, *between, term))
        layers.append(MaskedLayer(weights[k + 1], biases[k + 1], "identity", k - 1, gate))
    return layers


# The spline, with the settings that both packages give it.

_TAILS = {None: "none", "linear": "identity", "circular": "circular"}


def spline(module):
    """The `SplineElement` of a layer with the attributes of nflows' autoregressive spline."""
    net = module.autoregressive_net
    scale = 1 / math.sqrt(net.hidden_features) if hasattr(net, "hidden_features") else 1.0
    return _spline(
        module.tails,
        module.tail_bound,
        module.min_bin_width,
        module.min_bin_height,
        module.min_derivative,
        scale,
    )


@functools.lru_cache(256)
def _spline(tails, bound, width, height, slope, scale):
    knot_map = SoftplusKnots(width, height, slope, scale)
    return SplineElement((0, 1, 0, 1) if tails is None else bound, _TAILS[tails], knot_map)


# Which layers are accelerated.


def plan(style, kind, module):
    """The `Plan` for an autoregressive layer of this kind."""
    inspection = _inspection(style, kind)
    methods = {
        "forward": functools.partial(_call, style, kind, inspection, False),
        "inverse": functools.partial(_call, style, kind, inspection, True),
    }
    reason = (
        overridden(module, ("forward", "inverse", *inspection.formulas), style.name)
        or (kind.unsuitable and kind.unsuitable(module))
        or _why_not(inspection(module)[1])
        or _trial(style, kind, inspection, module)
    )
    return Plan({} if reason else methods, reason or "", remark=inspection.remark)


def _trial(style, kind, inspection, module):
    """Why the layer's numbers are not known to be the kernel's; old-style weight norm and pruning forbid copies."""
    reason = disagreement(functools.partial(_comparisons, style, kind, module))
    return "its network has hooks" if reason and any(inspection.seen.found.hooks) else reason


def _inspection(style, kind):
    inspect, unfit = functools.partial(_inspect, style), functools.partial(_unfit, style)
    return Inspection(_linears, inspect, unfit, (*_FORMULAS, *kind.relies_on))


def _why_not(found):
    return found if isinstance(found, str) else None


def _linears(module):
    """The masked layers of the module's MADE, in order."""
    modules = module.autoregressive_net._modules
    linears = [modules["initial_layer"]]
    for block in modules["blocks"]._modules.values():
        inner = block._modules
        if "linear_layers" in inner:
            linears += inner["linear_layers"]._modules.values()
        else:
            linears.append(inner["linear"])
    linears.append(modules["final_layer"])
    return linears


def _inspect(style, module):
    net = module.autoregressive_net
    reason = _unfamiliar(style, net)
    if reason:
        return reason
    linears = _linears(module)
    residual = _is_residual(linears, net.blocks)
    skips = [k - 2 if residual and k and k % 2 == 0 else None for k in range(len(linears))]
    masks = plain_masks(linears)
    found = network(net, masks, skips)
    if isinstance(found, str):
        return found
    if hasattr(net, "context_layer"):
        found = found._replace(remark=_blindness(masks))
    if residual:
        return found
    normed = [False, *(block.batch_norm is not None for block in net.blocks), False]
    return found._replace(exact=tuple(e and not n for e, n in zip(found.exact, normed)))


def _blindness(masks):
    """What to say of features whose parameters read no hidden unit: the context enters by these alone."""
    reads = masks[-1].cpu().view(masks[0].shape[1], -1).any(1)
    blind = ", ".join(map(str, (~reads).nonzero().flatten().tolist()))
    return f"in the library's own code, too, the context does not reach feature {blind}" if blind else ""


def _unfamiliar(style, net):
    """Why the network is not taken for a MADE of the library's, or None."""
    if style.name(type(net)) != f"{style.module}.MADE":
        return f"its network is no MADE but {type(net).__name__}"
    for path, module in parts(net):
        if not _is_known(style, path, module):
            return f"its network holds {type(module).__name__}"
        if has_own_forward(module):
            return f"its network holds a {type(module).__name__} with a forward of its own"
    if len(set(map(type, net.blocks))) > 1:
        return "its network holds blocks of both kinds"
    return None


def _is_known(style, path, module):
    """Whether the submodule at that path is what the library has there."""
    name = re.sub(r"\.\d+$", "", path).rpartition(".")[2]
    if name == "activation":
        return activation_of(module) is not None
    cls = class_of(module)
    named = (style.name(cls) or "").removeprefix(f"{style.module}.")
    return not _KNOWN.get(name, frozenset()).isdisjoint((cls, named))


def _unfit(style, module):
    """Why there is no kernel for an activation of the network, which may be set at any time; or None."""
    net = module._modules["autoregressive_net"]
    activations = [block.activation for block in net._modules["blocks"]._modules.values()]
    activations += [] if style.gated else [net.activation]
    for function in activations:
        if activation_of(function) is None:
            return f"its activation {getattr(function, '__name__', function)} has no kernel"
    return None


def _comparisons(style, kind, module):
    """A layer with such a structure against its fused forward, and its inverse against its forward.

    The library's inverse takes a pass for each feature; that its last pass undoes the forward is
    enough, because the op's inverse undoes the op's forward.
    """
    copied = stranger(module)
    inspection = _inspection(style, kind)
    x = points(copied.autoregressive_net.initial_layer.in_features, **interval(copied))
    contexts = [None]
    if hasattr(copied.autoregressive_net, "context_layer"):
        contexts.append(points(copied.autoregressive_net.context_layer.in_features))
    for context in contexts:
        wanted = type(module).forward(copied, x, context)
        yield "forward", wanted, _call(style, kind, inspection, False, copied, x, context)
        params = copied.autoregressive_net(x, context)
        back, logabsdet = copied._elementwise_inverse(wanted[0], params)
        yield "inverse", (back, -logabsdet), (x, wanted[1])

"""Networks of other libraries as the layers of a program's `Conditioned` step."""

import torch.nn.functional as F

from flowkern.adapters._masked import activation_of
from flowkern.adapters._masked import normalisation as gain_and_offset
from flowkern.programs import NO_TERM, Computed, layer, slots


def _given(*slots):
    return tuple(slot for slot in slots if slot is not None)


# Batch normalisation by running statistics: a gain and an offset.


def _followed(built, activation, norm):
    """The layer, followed by the norm, if any, and activation that a library puts before the next."""
    spec, (weight, bias, _, _, *terms) = built
    gain, offset = (None, None) if norm is None else (_normalised(norm, 0), _normalised(norm, 1))
    return spec._replace(activation=activation), (weight, bias, gain, offset, *terms)


def _normalised(norm, which):
    return Computed(lambda *_: gain_and_offset(norm)[which], _tensors(norm))


def _tensors(norm):
    return _given((norm._buffers, "running_mean"), (norm._buffers, "running_var"), *slots(norm))


# Residual networks: both an activation and, if any, a norm stand before each of a block's two layers.


def residual(first, blocks, last, linears, terms, gates):
    """[`layer`] of a residual network.

    first, last: the first and last `layer`; blocks: the library's; linears: the slots of each block's
    two linear layers; terms, gates: for each block the context's term of its first layer and the gate
    of its second.
    """
    layers = [first]
    for block, (one, two), term, gate in zip(blocks, linears, terms, gates):
        activation, begin = activation_of(block.activation), len(layers) - 1
        before, between = block.batch_norm_layers if block.use_batch_norm else (None, None)
        layers[-1] = _followed(layers[-1], activation, before)
        layers.append(_followed(layer(one, term), activation, between))
        layers.append(layer(two, gate=gate, skip=begin))
    return [*layers, last]


# MADEs of nflows and normflows.


def made(style, net, linears, exact, with_context):
    """[`layer`] of a MADE; exact: for each linear, whether its degrees say all that its mask does."""
    tensors = [masked(linear, enough) for linear, enough in zip(linears, exact)]
    blocks = list(net.blocks)
    is_residual = len(linears) == 2 + 2 * len(blocks)
    after = "identity" if style.gated else activation_of(net.activation)
    term = (after, *slots(net.context_layer)) if with_context else NO_TERM
    first, last = layer(tensors[0], term), layer(tensors[-1])
    if is_residual:
        pairs = list(zip(tensors[1:-1:2], tensors[2:-1:2]))
        of_blocks = [_term(block, with_context, "sigmoid" if style.gated else "identity") for block in blocks]
        none = [NO_TERM] * len(blocks)
        terms, gates = (none, of_blocks) if style.gated else (of_blocks, none)
        return residual(first, blocks, last, pairs, terms, gates)
    layers = [first if style.gated else _followed(first, after, None)]
    for block, linear, enough in zip(blocks, linears[1:], exact[1:]):
        both = masked(linear, enough) if block.batch_norm is None else _normed(linear, enough, block.batch_norm)
        layers.append(layer(both, activation=activation_of(block.activation)))
    return [*layers, last]


def _term(block, with_context, activation):
    return (activation, *slots(block.context_layer)) if with_context else NO_TERM


def masked(linear, exact):
    """The slots of a masked linear layer."""
    weight, bias = slots(linear)
    if exact:
        return weight, bias
    return Computed(lambda dtype, weight, mask: weight * mask, (weight, (linear._buffers, "mask"))), bias


def _normed(linear, exact, norm):
    """The slots of a masked layer whose inputs a norm normalises, which is folded into them."""
    places = (*_given(*slots(linear)), (linear._buffers, "mask"), *_tensors(norm))

    def weight():
        return linear._parameters["weight"] * linear._buffers["mask"]

    def bias(*_):
        own, offset = linear._parameters["bias"], F.linear(gain_and_offset(norm)[1], weight())
        return offset if own is None else own + offset

    return Computed(lambda *_: weight() * gain_and_offset(norm)[0], places), Computed(bias, places)

"""Networks as the layers of a `Conditioned` step."""

from flowkern.ops._flow_program import LAYER_TENSORS, ConditionerLayer

NO_TERM = None, None, None  # its activation, and the slots of its weight and bias


def layer(linear, term=NO_TERM, gate=NO_TERM, **spec):
    """(a `ConditionerLayer`, the slots of `LAYER_TENSORS`); linear: the slots of its weight and bias."""
    spec = ConditionerLayer(term=term[0], gate=gate[0], **spec)
    return spec, (*linear, None, None, *term[1:], *gate[1:])


def stacked(layers):
    """(the layers, the slots of all) as a `Conditioned` step and a `Part` take them."""
    specs = tuple(
        spec._replace(tensors=tuple(name for name, slot in zip(LAYER_TENSORS, slots) if slot is not None))
        for spec, slots in layers
    )
    return specs, tuple(slot for _, slots in layers for slot in slots if slot is not None)


def outputs(layers):
    """How many units each layer has."""
    return [held[key].shape[0] for _, ((held, key), *_) in layers]


def slots(module):
    """Where the weight and the bias of a linear module are."""
    return _slot(module, "weight"), _slot(module, "bias")


def missing(modules):
    """Places of the parameters that modules do without, and may be given."""
    return tuple((m._parameters, name) for m in modules for name, value in m._parameters.items() if value is None)


def _slot(module, name):
    return None if module._parameters.get(name) is None else (module._parameters, name)

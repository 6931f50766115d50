"""Networks as the layers of a `Conditioned` step."""

import torch

from flowkern.ops._flow_program import LAYER_TENSORS, ConditionerLayer
from flowkern.programs.program import Computed

_WIDEST_PAIR = 64
NO_TERM = None, None, None  # its activation, and the slots of its weight and bias


def layer(linear, term=NO_TERM, gate=NO_TERM, **spec):
    """(a `ConditionerLayer`, the slots of `LAYER_TENSORS`); linear: the slots of its weight and bias."""
    spec = ConditionerLayer(term=term[0], gate=gate[0], **spec)
    return spec, (*linear, None, None, *term[1:], *gate[1:])


def side_by_side(one, other):
    """[`layer`] of two chains on the same inputs as one, whose outputs are those of the one, then of the other; None
    where they differ in length or activations, or are so wide that the zeros between them cost more than two calls.
    """
    if max((*outputs(one)[:-1], *outputs(other)[:-1]), default=0) > _WIDEST_PAIR:
        return None
    if [spec._replace(tensors=()) for spec, _ in one] != [spec._replace(tensors=()) for spec, _ in other]:
        return None
    if any((a[1] is None) != (b[1] is None) for (_, a), (_, b) in zip(one, other)):
        return None
    layers = []
    for k, ((spec, (weight, bias, *_)), (_, (weight2, bias2, *_))) in enumerate(zip(one, other)):
        joined = Computed(_diagonal if k else _below, (weight, weight2))
        biases = None if bias is None else Computed(_below, (bias, bias2))
        layers.append((spec, (joined, biases, *(None,) * (len(LAYER_TENSORS) - 2))))
    return layers


def _below(dtype, one, other):
    return torch.cat((one, other))


def _diagonal(dtype, one, other):
    return torch.block_diag(one, other)


def stacked(layers):
    """(the layers, the slots of all) as a `Conditioned` step and a `Part` take them."""
    specs = tuple(
        spec._replace(tensors=tuple(name for name, slot in zip(LAYER_TENSORS, slots) if slot is not None))
        for spec, slots in layers
    )
    return specs, tuple(slot for _, slots in layers for slot in slots if slot is not None)


def outputs(layers):
    """How many units each layer has."""
    return [_units(weight) for _, (weight, *_) in layers]


def _units(weight):
    if isinstance(weight, Computed):
        return sum(map(_units, weight.places))
    held, key = weight
    return held[key].shape[0]


def slots(module):
    """Where the weight and the bias of a linear module are."""
    return _slot(module, "weight"), _slot(module, "bias")


def reflections(dtype, vectors):
    """H_1 H_2 … H_K, the product of the reflections at the planes normal to v_1 … v_K (K, D), as I − Vᵀ T⁻¹ V.

    Source: Schreiber and Van Loan, A Storage-Efficient WY Representation for Products of Householder
    Transformations (1989); T is upper triangular, T_ij = v_i·v_j and T_ii = v_i·v_i/2.
    """
    products = vectors @ vectors.mT
    halved = products.triu(1) + (products.diagonal() / 2).diag()
    solved = torch.linalg.solve_triangular(halved, vectors, upper=True)
    return torch.eye(vectors.shape[1], dtype=dtype, device=vectors.device) - vectors.mT @ solved


def missing(modules):
    """Places of the parameters that modules do without, and may be given."""
    return tuple((m._parameters, name) for m in modules for name, value in m._parameters.items() if value is None)


def _slot(module, name):
    return None if module._parameters.get(name) is None else (module._parameters, name)

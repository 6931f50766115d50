"""Gradients of a conditioner's tensors, from what a backward kernel leaves on its tape.

The tape (rows, N) holds, one row per unit: u of each hidden layer, then for every layer the
cotangent v̄ of W u + b, then for every layer with a gate the gate's cotangent, and for every layer
with a gain or an offset the cotangents of both.
"""

from flowkern.ops._masked_autoregressive.conditioner import masks
from flowkern.ops._precision import mm


def tape_rows(tensors):
    """How many rows the tape has."""
    return sum(rows for _, rows in _sections(tensors))


def starts(tensors):
    """{(kind, layer): the row at which that part of the tape begins}."""
    places, row = {}, 0
    for part, rows in _sections(tensors):
        places[part], row = row, row + rows
    return places


def of_tensors(x, tape, needs, ranks, tensors):
    """The gradients of tensors (weight, bias, gate, gain, offset of each layer), where needed.

    x: (N, D), what the first layer sees. ranks: as from `Degrees.on`.
    """
    parts = _split(tape, tensors)
    read = masks(x.shape[1], ranks, tensors[::5]) if any(needs[::5]) else None
    grads = []
    for i, (tensor, needed) in enumerate(zip(tensors, needs)):
        layer, kind = divmod(i, 5)
        if not needed:
            grad = None
        elif kind == 0:
            u = parts["u", layer - 1] if layer else x.mT
            grad = mm(parts["v", layer], u.mT).masked_fill_(~read[layer], 0)
        else:
            rows = parts[("v", "gate", "gain", "offset")[kind - 1], layer]
            grad = rows.sum(1) if tensor.dim() == 1 else rows.mT
        grads.append(grad)
    return grads


def _sections(tensors):
    """((kind, layer), rows) of the tape's parts, in order."""
    layers = [tensors[i : i + 5] for i in range(0, len(tensors), 5)]
    units = [weight.shape[0] for weight, *_ in layers]
    yield from ((("u", k), n) for k, n in enumerate(units[:-1]))
    yield from ((("v", k), n) for k, n in enumerate(units))
    for k, (_, _, gate, gain, offset) in enumerate(layers):
        if gate is not None:
            yield ("gate", k), units[k]
        if gain is not None or offset is not None:
            yield ("gain", k), units[k]
            yield ("offset", k), units[k]


def _split(tape, tensors):
    names, rows = zip(*_sections(tensors))
    return dict(zip(names, tape.split(rows)))

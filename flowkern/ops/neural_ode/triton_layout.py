"""Where the Triton kernels find things: parameters packed into one row, and their table."""

from flowkern.ops.neural_ode.triton_field import Header, Layer


def parameters(p):
    """All parameters of a `Problem`, zeros for biases that it lacks, in the order of packing."""
    weights, biases = p.tensors[: p.layers], p.tensors[p.layers :]
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights[1:], biases)]
    closed = p.first.new_zeros(0) if p.closed is None else p.closed
    return [*weights, *biases, closed, p.first, p.steps]


def unpack(row, p):
    """Gradients of steps, first, closed and the tensors from a row packed alike; None of what is None."""
    parts = parameters(p)
    grads = [g.reshape(t.shape).clone() for g, t in zip(row.split([t.numel() for t in parts]), parts)]
    closed, first, steps = grads[-3:]
    tensors = [None if t is None else grad for t, grad in zip(p.tensors, grads)]
    return steps, first, None if p.closed is None else closed, *tensors


def table(p, backward, adjoint):
    """The kernels' table: its `Header`, and a `Layer` for the state and each layer."""
    units = [p.tensors[0].shape[1], *(weight.shape[0] for weight in p.tensors[: p.layers])]
    starts = _starts([t.numel() for t in parameters(p)])
    weights, biases = (0, *starts[: p.layers]), (0, 0, *starts[p.layers :])
    layers = map(Layer, units, _starts(units), weights, biases, (0, *p.spec.activations, 0))
    closed, first, steps = starts[-4:-1]
    closed_units = 0 if p.closed is None else p.closed.numel() // units[1]
    each = sum(units) if backward and not adjoint else 0
    planes = _starts(_plane_rows(p, units, backward, adjoint))
    header = Header(first, steps, closed, closed_units, each, planes[-1], *planes[:-1])
    return header, tuple(layers)


def _starts(sizes):
    """Where each begins, and where the last one ends."""
    return [sum(sizes[:i]) for i in range(len(sizes) + 1)]


def _plane_rows(p, units, backward, adjoint):
    """Rows of the planes in the header's order; a discrete backward holds those of all stages."""
    stages, state, network = p.spec.stages, units[0], sum(units)
    held = stages * network if backward and not adjoint else network
    tangents, trace = p.directions is not None, p.directions is not None or p.closed is not None
    return (
        state * (adjoint or not backward),  # y
        stages * state,  # k
        held,  # u
        held * (backward or trace),  # d
        held * (backward and trace),  # dd
        network * tangents,  # t
        network * (backward and tangents),  # v
        (p.spec.every + 1) * state * (backward and not adjoint),  # states
        state * backward,  # lam
        stages * state * backward,  # l
        network * backward,  # g
        network * (backward and trace),  # gt
        units[1] * (backward and p.row_bias is not None),  # row_bias
    )

"""Where the Triton kernels find things: parameters packed into one row, and their table."""

from flowkern.ops._neural_ode.triton_field import Header, Layer


def parameters(p):
    """All parameters of a `Problem`, zeros for biases that it lacks, in the order of packing."""
    weights, biases = p.tensors[: p.layers], p.tensors[p.layers :]
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases)]
    none = p.starts.new_zeros(0)
    others = (none if t is None else t for t in (p.time, p.frequencies, p.closed))
    return [*weights, *biases, *others, p.starts, p.sizes]


def unpack(row, p):
    """Gradients of starts, sizes, time, frequencies, closed and the tensors from a row packed alike."""
    parts = parameters(p)
    grads = [g.reshape(t.shape).clone() for g, t in zip(row.split([t.numel() for t in parts]), parts)]
    given = (*p.tensors, p.time, p.frequencies, p.closed, p.starts, p.sizes)
    grads = [None if t is None else grad for t, grad in zip(given, grads)]
    return *grads[-2:], *grads[-5:-2], *grads[:-5]


def table(p, backward, adjoint):
    """The kernels' table: its `Header`, and a `Layer` for the state and each layer."""
    units = [p.tensors[0].shape[1], *(weight.shape[0] for weight in p.tensors[: p.layers])]
    starts = _starts([t.numel() for t in parameters(p)])
    weights, biases = (0, *starts[: p.layers]), (0, *starts[p.layers :])
    layers = map(Layer, units, _starts(units), weights, biases, (0, *p.spec.activations, 0))
    places = starts[-6:-1]  # of time, frequencies, closed, starts, sizes
    frequencies = 0 if p.frequencies is None else len(p.frequencies)
    closed_units = 0 if p.closed is None else p.closed.numel() // units[1]
    each = sum(units) if backward and not adjoint else 0
    planes = _starts(_plane_rows(p, units, backward, adjoint))
    header = Header(*places, frequencies, closed_units, each, planes[-1], *planes[:-1])  # type: ignore[call-arg]
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

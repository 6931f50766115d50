"""The masked conditioner on a tile of samples in Triton: device functions.

Units are sorted by rank, layer 0 being the features and layer L the outputs, which have the rank
below their feature's. A unit of rank r sees the units of rank ≤ r of the layer before: so W_k is
block-triangular, and `_upto(net, k, r)` says where its blocks end.

A program keeps everything about ROWS samples in a workspace of its own, one row of ROWS numbers per
unit and plane: u and grad by place in that order; z and grad_skip by the unit's own number, by which
skips find their partner. Threads hand values on to each other there, with barriers in between.

A scalar condition restricts a mask by tl.where: `mask & condition` is an integer, and so no mask, to the
interpreter of Triton 3.9.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from flowkern.ops import _triton_activation

ROWS = tl.constexpr(32)  # samples of a tile
WIDE = tl.constexpr(32)  # units of a tile in products with many
NARROW = tl.constexpr(16)  # and in the steps of a solve, where a rank has few
DEPTH = tl.constexpr(16)  # inputs that a product takes at a time


class Row(NamedTuple):
    """A layer in the kernels' table, features and outputs included.

    Of a bias, gate, gain or offset: where it begins, and whether it is absent (0), shared by all
    samples (1) or one for each (2).
    """

    first: int  # of its rows in each plane
    units: int
    per_place: int = 1  # units for each entry of order and ranks: 1, or P for the outputs
    order: int = 0  # where its order begins
    ends: int = 0  # and its row of ends, from rank 0 on
    weight: int = 0
    activation: int = 0
    skip: int = -1  # `first` of the layer whose z is added; −1: none
    bias: int = 0
    bias_kind: int = 0
    gate: int = 0
    gate_kind: int = 0
    gain: int = 0
    gain_kind: int = 0
    offset: int = 0
    offset_kind: int = 0
    term: int = 0  # the weights of the context's term among the shared, and its bias
    term_bias: int = 0
    term_bias_kind: int = 0
    context: int = 0  # the context among the rows, and how many inputs it has
    inputs: int = 0
    term_activation: int = 0
    tape_u: int = -1  # rows of the tape; −1: none
    tape_v: int = -1
    tape_gate: int = -1
    tape_gain: int = -1
    tape_offset: int = -1


COLUMNS = tl.constexpr(len(Row._fields))
FIRST, UNITS, PER_PLACE, ORDER, ENDS, WEIGHT, ACTIVATION, SKIP = map(tl.constexpr, range(8))
BIAS, GATE, GAIN, OFFSET = map(tl.constexpr, range(8, 16, 2))
TERM, TERM_BIAS, _, CONTEXT, INPUTS, TERM_ACTIVATION = map(tl.constexpr, range(16, 22))
TAPE_U, TAPE_V, TAPE_GATE, TAPE_GAIN, TAPE_OFFSET = map(tl.constexpr, range(22, 27))


class Net(NamedTuple):
    """The conditioner; weights, shared and each hold the values of all layers."""

    layers: tl.tensor  # without the features
    table: tl.tensor
    slopes: tl.tensor  # of the activations, then of those of contexts
    order: tl.tensor
    ends: tl.tensor
    ranks: tl.tensor  # (layers + 1, width)
    width: tl.tensor
    weights: tl.tensor
    shared: tl.tensor
    each: tl.tensor  # (rows, N)


class Tile(NamedTuple):
    """ROWS samples, of which `here` are among the N of the batch, and their planes."""

    first: tl.tensor
    n: tl.tensor
    here: tl.tensor
    N: tl.tensor
    u: tl.tensor
    z: tl.tensor
    grad: tl.tensor
    grad_skip: tl.tensor
    tape: tl.tensor  # (rows, N)


@triton.jit
def _of(net, k, COLUMN: tl.constexpr):
    return tl.load(net.table + k * COLUMNS + COLUMN)


@triton.jit
def upto(net, k, rank):
    """How many units of layer k have at most this rank, −1 or more."""
    count = tl.load(net.ends + _of(net, k, ENDS) + rank, mask=rank >= 0, other=0)
    return count * _of(net, k, PER_PLACE)


@triton.jit
def units(net, k):
    """How many units layer k has."""
    return _of(net, k, UNITS)


@triton.jit
def _rank(net, k, place, used):
    at = net.ranks + k * net.width + place // _of(net, k, PER_PLACE)
    return tl.load(at, mask=used, other=0)


@triton.jit
def number(net, k, place, used):
    """The unit's own number, from its place in the order of ranks."""
    per = _of(net, k, PER_PLACE)
    at = net.order + _of(net, k, ORDER) + place // per
    return tl.load(at, mask=used, other=0) * per + place % per


@triton.jit
def _rows(plane, row):
    return plane + row[:, None] * ROWS + tl.arange(0, ROWS)[None, :]


@triton.jit
def rows_of(net, k, plane, place):
    """Where the rows of a plane lie that belong to layer k's units."""
    return _rows(plane, _of(net, k, FIRST) + place)


@triton.jit
def _product(sums, k, first, start, stop, net, plane, BACK: tl.constexpr, MASKED: tl.constexpr):
    """sums + W_k u for the units of layer k from `first` on, over the inputs in [start, stop).

    BACK: sums + W_kᵀ g for the inputs from `first` on, over the units in [start, stop).
    MASKED: there are pairs of an input and a unit of lower rank, whose weights are not read.
    """
    to, of = (k - 1, k) if BACK else (k, k - 1)
    place = first + tl.arange(0, sums.shape[0])
    used = place < units(net, to)
    inputs, weights = units(net, k - 1), net.weights + _of(net, k, WEIGHT)
    rank = _rank(net, to, place, used)
    if MASKED and BACK:  # the first that sees any, or the last that is seen
        start = tl.maximum(start, upto(net, k, _rank(net, to, first, True) - 1))
    elif MASKED:
        stop = tl.minimum(stop, upto(net, k - 1, tl.max(rank)))
    for i in range(start, stop, DEPTH):
        other = i + tl.arange(0, DEPTH)
        there = other < stop
        read = used[:, None] & there[None, :]
        if MASKED and BACK:
            read &= rank[:, None] <= _rank(net, of, other, there)[None, :]
        elif MASKED:
            read &= rank[:, None] >= _rank(net, of, other, there)[None, :]
        if BACK:
            at = weights + other[None, :] * inputs + place[:, None]
        else:
            at = weights + place[:, None] * inputs + other[None, :]
        w = tl.load(at, mask=read, other=0.0)
        values = tl.load(rows_of(net, of, plane, other), mask=there[:, None], other=0.0)
        sums = tl.dot(w, values, sums, input_precision="ieee", out_dtype=sums.dtype)
    return sums


@triton.jit
def _values(net, k, COLUMN: tl.constexpr, unit, used, tile, DEFAULT: tl.constexpr):
    """A bias, gate, gain or offset of units of layer k, for each sample."""
    start, kind = _of(net, k, COLUMN), _of(net, k, COLUMN + 1)
    shared = tl.load(net.shared + start + unit, mask=tl.where(kind == 1, used, False), other=DEFAULT)
    at = net.each + (start + unit)[:, None] * tile.N + tile.n[None, :]
    own = tl.where(kind == 2, used, False)
    each = tl.load(at, mask=own[:, None] & tile.here[None, :], other=DEFAULT)
    return tl.where(kind == 2, each, shared[:, None])


@triton.jit
def start(net, tile, SPEC: tl.constexpr):
    """The rows of all layers begin with what the context adds to their biases: activation(C c + d)."""
    for k in range(1, net.layers + 1):
        inputs, context = _of(net, k, INPUTS), _of(net, k, CONTEXT)
        slope = tl.load(net.slopes + net.layers + 1 + k).to(SPEC.compute)
        for i in range(0, units(net, k), NARROW):
            place = i + tl.arange(0, NARROW)
            used = place < units(net, k)
            unit = number(net, k, place, used)
            sums = tl.zeros((NARROW, ROWS), SPEC.compute)
            sums += _values(net, k, TERM_BIAS, unit, used, tile, 0.0)
            for c in range(0, inputs):
                weight = tl.load(net.shared + _of(net, k, TERM) + unit * inputs + c, mask=used, other=0.0)
                value = tl.load(net.each + (context + c) * tile.N + tile.n, mask=tile.here, other=0.0)
                sums += weight[:, None] * value[None, :]
            added, _, _ = _triton_activation.activate(_of(net, k, TERM_ACTIVATION), slope, sums)
            tl.store(rows_of(net, k, tile.u, place), added, mask=used[:, None])


@triton.jit
def on_tape(values, row, unit, used, tile):
    """Store values of units on the tape, from `row` on (−1: not)."""
    at = tile.tape + (row + unit)[:, None] * tile.N + tile.n[None, :]
    stored = tl.where(row >= 0, used, False)
    tl.store(at, values, mask=stored[:, None] & tile.here[None, :])


@triton.jit
def _finish(v, k, place, used, net, tile, SPEC: tl.constexpr):
    """From W u to z, which is stored, and to the activation u'."""
    unit = number(net, k, place, used)
    there = used[:, None]
    v += _values(net, k, BIAS, unit, used, tile, 0.0)
    z = v * _values(net, k, GATE, unit, used, tile, 1.0)
    skip = _of(net, k, SKIP)
    past = _rows(tile.z, skip + unit)
    z += tl.load(past, mask=tl.where(skip >= 0, there, False), other=0.0)
    tl.store(rows_of(net, k, tile.z, unit), z, mask=there)
    gain = _values(net, k, GAIN, unit, used, tile, 1.0)
    offset = _values(net, k, OFFSET, unit, used, tile, 0.0)
    slope = tl.load(net.slopes + k).to(z.dtype)
    u, _, _ = _triton_activation.activate(_of(net, k, ACTIVATION), slope, gain * z + offset)
    if SPEC.backward:
        tl.store(rows_of(net, k, tile.grad, place), tl.zeros_like(z), mask=there)
        tl.store(rows_of(net, k, tile.grad_skip, unit), tl.zeros_like(z), mask=there)
    if SPEC.tape:
        on_tape(u, _of(net, k, TAPE_U), unit, used, tile)
        on_tape(v, _of(net, k, TAPE_GATE), unit, used, tile)  # until `_finish_back`
    return u


@triton.jit
def layer(
    k, first, end, start, stop, net, tile, BLOCK: tl.constexpr, RESUME: tl.constexpr,
    FINISH: tl.constexpr, MASKED: tl.constexpr, SPEC: tl.constexpr,
):  # fmt: skip
    """Adds W_k u over the inputs in [start, stop) to the units in [first, end) of layer k.

    RESUME: on top of what they hold. FINISH: then come bias, gate, skip and activation.
    """
    for i in range(first, end, BLOCK):
        place = i + tl.arange(0, BLOCK)
        used = place < end
        at = rows_of(net, k, tile.u, place)
        sums = tl.zeros((BLOCK, ROWS), SPEC.compute)
        if RESUME:
            sums = tl.load(at, mask=used[:, None], other=0.0)
        sums = _product(sums, k, i, start, stop, net, tile.u, False, MASKED)
        if FINISH:
            sums = _finish(sums, k, place, used, net, tile, SPEC)
        tl.store(at, sums, mask=used[:, None])


@triton.jit
def _finish_back(grad, k, place, used, net, tile, SPEC: tl.constexpr):
    """From the cotangent of u' to that of W u + b; with those of gate, gain and offset on the tape."""
    unit = number(net, k, place, used)
    there = used[:, None]
    z = tl.load(rows_of(net, k, tile.z, unit), mask=there, other=0.0)
    gain = _values(net, k, GAIN, unit, used, tile, 1.0)
    offset = _values(net, k, OFFSET, unit, used, tile, 0.0)
    slope = tl.load(net.slopes + k).to(z.dtype)
    _, d, _ = _triton_activation.activate(_of(net, k, ACTIVATION), slope, gain * z + offset)
    grad_offset = grad * d
    grad_z = grad_offset * gain
    grad_z += tl.load(rows_of(net, k, tile.grad_skip, unit), mask=there, other=0.0)
    skip = _of(net, k, SKIP)
    past = _rows(tile.grad_skip, skip + unit)
    skipped = tl.where(skip >= 0, there, False)
    tl.store(past, tl.load(past, mask=skipped, other=0.0) + grad_z, mask=skipped)
    grad_v = grad_z * _values(net, k, GATE, unit, used, tile, 1.0)
    if SPEC.tape:
        row = _of(net, k, TAPE_GATE)
        at = tile.tape + (row + unit)[:, None] * tile.N + tile.n[None, :]
        v = tl.load(at, mask=tl.where(row >= 0, there, False) & tile.here[None, :], other=0.0)
        on_tape(v * grad_z, row, unit, used, tile)
        on_tape(z * grad_offset, _of(net, k, TAPE_GAIN), unit, used, tile)
        on_tape(grad_offset, _of(net, k, TAPE_OFFSET), unit, used, tile)
        on_tape(grad_v, _of(net, k, TAPE_V), unit, used, tile)
    return grad_v


@triton.jit
def layer_back(
    k, first, end, start, stop, net, tile, BLOCK: tl.constexpr, FINISH: tl.constexpr,
    MASKED: tl.constexpr, SPEC: tl.constexpr,
):  # fmt: skip
    """Adds what the units in [start, stop) of layer k + 1 send back to those in [first, end) of k."""
    for i in range(first, end, BLOCK):
        place = i + tl.arange(0, BLOCK)
        used = place < end
        at = rows_of(net, k, tile.grad, place)
        sums = tl.load(at, mask=used[:, None], other=0.0)
        sums = _product(sums, k + 1, i, start, stop, net, tile.grad, True, MASKED)
        if FINISH:
            sums = _finish_back(sums, k, place, used, net, tile, SPEC)
        tl.store(at, sums, mask=used[:, None])

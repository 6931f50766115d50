"""The field of a tile of samples in Triton, with trace and backward: device functions.

A program keeps everything about ROWS samples in a workspace of its own: planes of rows, a row being
ROWS numbers, one per sample. A plane that belongs to the network has a row for each unit of each
layer, layer 0 being the state and layer L the field's value. Threads hand values on to each other
there, with barriers in between. So any width and depth will do, and one binary serves all.

All weights and biases, what the first layer does with time, `closed`, and the begins and step sizes of the
intervals lie one after another in `params`; their gradients lie alike in a slice that the program alone
adds to.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from flowkern.ops import _triton_activation
from flowkern.ops._triton_random import sincos

ROWS = tl.constexpr(32)  # samples of a tile
NARROW = tl.constexpr(16)  # features of a tile
DEPTH = tl.constexpr(16)  # inputs that a product takes at a time
SQUARE = tl.constexpr(32)  # sides of a tile of a weight's gradient


class Layer(NamedTuple):
    """A layer in the kernels' table, the state included."""

    units: int
    row: int  # its first in a plane
    weight: int = 0  # where it lies in params
    bias: int = 0
    activation: int = 0


class Header(NamedTuple):
    """What the table begins with: places in params, and rows at which a program's planes begin."""

    time: int
    frequencies: int
    closed: int
    starts: int
    sizes: int
    frequency_count: int
    closed_units: int  # rows of `closed`, 1 for one hidden layer
    stage: int  # rows from the planes u, d, dd of a stage to those of the next
    rows: int  # of all planes
    y: int
    k: int  # f of each stage
    u: int  # activations
    d: int  # derivatives of the activations
    dd: int
    t: int  # tangents
    v: int  # tangents before the activations
    states: int  # those before and after each step since one was kept
    lam: int  # cotangents of y
    l: int  # fᵀ of each stage: the cotangents of its y
    g: int  # cotangents of what the activations are applied to
    gt: int  # cotangents of v
    row_bias: int  # gradients of row_bias


COLUMNS = tl.constexpr(len(Layer._fields))
UNITS, ROW, WEIGHT, BIAS, ACTIVATION = map(tl.constexpr, range(len(Layer._fields)))
HEADER = tl.constexpr(len(Header._fields))
TIME, FREQUENCIES, CLOSED, STARTS, SIZES = map(tl.constexpr, range(5))
FREQUENCY_COUNT, CLOSED_UNITS, STAGE, WORKSPACE = map(tl.constexpr, range(5, 9))
PLANE_Y, PLANE_K, PLANE_U, PLANE_D, PLANE_DD, PLANE_T, PLANE_V = map(tl.constexpr, range(9, 16))
PLANE_STATES, PLANE_LAM, PLANE_L, PLANE_G, PLANE_GT = map(tl.constexpr, range(16, 21))
PLANE_ROW_BIAS = tl.constexpr(21)


class Net(NamedTuple):
    """The problem: network, tableau, and the gradients of the parameters."""

    layers: tl.tensor  # L
    steps: tl.tensor  # of an interval
    table: tl.tensor
    slopes: tl.tensor  # of the activations
    stages: tl.tensor
    tableau: tl.tensor  # rows of a, then b, ones, c, and the weight of a direction
    params: tl.tensor
    grads: tl.tensor


class Tile(NamedTuple):
    """ROWS samples, of which `here` are in the batch (the last one stands in for others)."""

    n: tl.tensor
    here: tl.tensor
    base: tl.tensor  # of the program's planes
    row_bias: tl.tensor  # (N, H)
    directions: tl.tensor  # (M, N, D) with strides
    count: tl.tensor  # M
    m_stride: tl.tensor
    n_stride: tl.tensor
    d_stride: tl.tensor


class Stage(NamedTuple):
    """A stage of a step: its planes, its f, its time, and how many steps that is after the interval's begin."""

    u: tl.tensor
    d: tl.tensor
    dd: tl.tensor
    f: tl.tensor
    t: tl.tensor
    after: tl.tensor


@triton.jit
def header(net, NUMBER: tl.constexpr):
    """An entry of the table's Header."""
    return tl.load(net.table + NUMBER)


@triton.jit
def of(net, k, COLUMN: tl.constexpr):
    """An entry of layer k in the table."""
    return tl.load(net.table + HEADER + k * COLUMNS + COLUMN)


@triton.jit
def plane(net, tile, NUMBER: tl.constexpr):
    """Where a plane begins."""
    return tile.base + tl.load(net.table + NUMBER) * ROWS


@triton.jit
def rows(base, row):
    """Where rows lie from `base` on."""
    return base + row[:, None] * ROWS + tl.arange(0, ROWS)[None, :]


@triton.jit
def layer(net, base, k):
    """Where the rows of layer k begin in a plane."""
    return base + tl.load(net.table + HEADER + k * COLUMNS + ROW) * ROWS


@triton.jit
def stage_of(n, i, net, tile, SPEC: tl.constexpr):
    """Stage i of step n."""
    shift = i * header(net, STAGE) * ROWS
    u, d = plane(net, tile, PLANE_U) + shift, plane(net, tile, PLANE_D) + shift
    f = plane(net, tile, PLANE_K) + i * of(net, 0, UNITS) * ROWS
    c = tl.load(net.tableau + (net.stages + 2) * net.stages + i)
    if SPEC.adjoint:
        c = 1 - c
    after = n % net.steps + c
    t = tl.load(net.params + header(net, STARTS) + n // net.steps) + after * step_size(n, net)
    return Stage(u, d, plane(net, tile, PLANE_DD) + shift, f, t, after)


@triton.jit
def step_size(n, net):
    """h of step n."""
    return tl.load(net.params + header(net, SIZES) + n // net.steps)


@triton.jit
def inner(a, b, count, SPEC: tl.constexpr):
    """Σ over `count` rows of a·b, for each sample."""
    total = tl.zeros((ROWS,), SPEC.compute)
    for i in range(0, count, NARROW):
        row = i + tl.arange(0, NARROW)
        used = (row < count)[:, None]
        left = tl.load(rows(a, row), mask=used, other=0.0)
        total += tl.sum(left * tl.load(rows(b, row), mask=used, other=0.0), 0)
    return total


@triton.jit
def product(
    weight, unit_stride, input_stride, first, units, inputs, source, BLOCK: tl.constexpr,
    SPEC: tl.constexpr,
):  # fmt: skip
    """W u for BLOCK units from `first` on, u being the rows of `source`."""
    unit = first + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK, ROWS), SPEC.compute)
    for i in range(0, inputs, DEPTH):
        k = i + tl.arange(0, DEPTH)
        at = weight + unit[:, None] * unit_stride + k[None, :] * input_stride
        w = tl.load(at, mask=(unit < units)[:, None] & (k < inputs)[None, :], other=0.0)
        values = tl.load(rows(source, k), mask=(k < inputs)[:, None], other=0.0)
        sums = tl.dot(w, values, sums, input_precision="ieee", out_dtype=sums.dtype)
    return sums


@triton.jit
def forth(net, k, first, source, BLOCK: tl.constexpr, SPEC: tl.constexpr):
    """W u for BLOCK units of layer k from `first` on, u being the rows of layer k − 1."""
    units, inputs = of(net, k, UNITS), of(net, k - 1, UNITS)
    at = net.params + of(net, k, WEIGHT)
    return product(at, inputs, 1, first, units, inputs, source, BLOCK, SPEC)


@triton.jit
def back(net, k, first, source, BLOCK: tl.constexpr, SPEC: tl.constexpr):
    """Wᵀ g for BLOCK units of layer k from `first` on, g being the rows of layer k + 1."""
    units, inputs = of(net, k, UNITS), of(net, k + 1, UNITS)
    at = net.params + of(net, k + 1, WEIGHT)
    return product(at, 1, units, first, units, inputs, source, BLOCK, SPEC)


@triton.jit
def time_weight(net, unit, column, used, SPEC: tl.constexpr):
    """Where W of the first layer's units has its column beside φ(t), and what is there."""
    columns = 1
    if SPEC.time == 2:
        columns = 2 * header(net, FREQUENCY_COUNT)
    at = header(net, TIME) + unit * columns + column
    return at, tl.load(net.params + at, mask=used, other=0.0)


@triton.jit
def _of_time(unit, used, t, net, SPEC: tl.constexpr):
    """W φ(t) (BLOCK,)."""
    if SPEC.time == 1:
        _, w = time_weight(net, unit, 0, used, SPEC)
        return w * t
    total, count = tl.zeros(unit.shape, SPEC.compute), header(net, FREQUENCY_COUNT)
    for f in range(0, count):
        sine, cosine = sincos(tl.load(net.params + header(net, FREQUENCIES) + f) * t)
        _, of_cosine = time_weight(net, unit, f, used, SPEC)
        _, of_sine = time_weight(net, unit, count + f, used, SPEC)
        total += of_cosine * cosine + of_sine * sine
    return total


@triton.jit
def _bias(k, unit, used, stage, net, tile, SPEC: tl.constexpr):
    """What layer k adds: (BLOCK, 1), or for the first (BLOCK, ROWS)."""
    bias = tl.load(net.params + of(net, k, BIAS) + unit, mask=used, other=0.0)
    if SPEC.time > 0:
        if k == 1:
            bias += _of_time(unit, used, stage.t, net, SPEC)
    bias = bias[:, None]
    if SPEC.row_bias:
        at = tile.row_bias + tile.n[None, :] * of(net, 1, UNITS) + unit[:, None]
        bias += tl.load(at, mask=tl.where(k == 1, used, False)[:, None], other=0.0)
    return bias


@triton.jit
def field(stage, net, tile, SPEC: tl.constexpr):
    """f of the state in the stage's planes, and there all that a trace or a backward needs."""
    for k in range(1, net.layers):
        units, row, source = of(net, k, UNITS), of(net, k, ROW), layer(net, stage.u, k - 1)
        kind, slope = of(net, k, ACTIVATION), tl.load(net.slopes + k)
        for i in range(0, units, SPEC.wide):
            unit = i + tl.arange(0, SPEC.wide)
            used = unit < units
            z = forth(net, k, i, source, SPEC.wide, SPEC)
            z += _bias(k, unit, used, stage, net, tile, SPEC)
            u, d, dd = _triton_activation.activate(kind, slope, z)
            tl.store(rows(stage.u, row + unit), u, mask=used[:, None])
            if SPEC.trace or SPEC.backward:
                tl.store(rows(stage.d, row + unit), d, mask=used[:, None])
            if SPEC.trace and SPEC.backward:
                tl.store(rows(stage.dd, row + unit), dd, mask=used[:, None])
        tl.debug_barrier()
    k, units = net.layers, of(net, 0, UNITS)
    for i in range(0, units, NARROW):
        unit = i + tl.arange(0, NARROW)
        used = unit < units
        f = forth(net, k, i, layer(net, stage.u, k - 1), NARROW, SPEC)
        f += _bias(k, unit, used, stage, net, tile, SPEC)
        tl.store(rows(stage.f, unit), f, mask=used[:, None])
    tl.debug_barrier()


@triton.jit
def read(base, source, n_stride, d_stride, n, here, count, ADD: tl.constexpr):
    """`count` columns of samples n (others: zeros) to rows from `base` on, or added there."""
    for i in range(0, count, NARROW):
        row = i + tl.arange(0, NARROW)
        used = (row < count)[:, None]
        at = source + n[None, :] * n_stride + row[:, None] * d_stride
        values = tl.load(at, mask=used & here[None, :], other=0.0)
        if ADD:
            values += tl.load(rows(base, row), mask=used, other=0.0)
        tl.store(rows(base, row), values, mask=used)


@triton.jit
def push(m, stage, net, tile, SPEC: tl.constexpr):
    """The tangents of direction m through all layers: εᵀ ∂f/∂y ε, and ‖∂f/∂y ε‖² or 0 (ROWS,)."""
    t, v, features = plane(net, tile, PLANE_T), plane(net, tile, PLANE_V), of(net, 0, UNITS)
    direction = tile.directions + tl.cast(m, tl.int64) * tile.m_stride
    read(t, direction, tile.n_stride, tile.d_stride, tile.n, tile.n >= 0, features, False)
    tl.debug_barrier()
    for k in range(1, net.layers):
        units, row, source = of(net, k, UNITS), of(net, k, ROW), layer(net, t, k - 1)
        for i in range(0, units, SPEC.wide):
            unit = i + tl.arange(0, SPEC.wide)
            used = (unit < units)[:, None]
            tangent = forth(net, k, i, source, SPEC.wide, SPEC)
            d = tl.load(rows(stage.d, row + unit), mask=used, other=0.0)
            tl.store(rows(t, row + unit), tangent * d, mask=used)
            if SPEC.backward:
                tl.store(rows(v, row + unit), tangent, mask=used)
        tl.debug_barrier()
    k = net.layers
    last = layer(net, t, k)
    for i in range(0, features, NARROW):
        row = i + tl.arange(0, NARROW)
        tangent = forth(net, k, i, layer(net, t, k - 1), NARROW, SPEC)
        tl.store(rows(last, row), tangent, mask=(row < features)[:, None])
    tl.debug_barrier()
    square = tl.zeros((ROWS,), SPEC.compute)
    if SPEC.jacobian:
        square = inner(last, last, features, SPEC)
    return inner(t, last, features, SPEC), square


@triton.jit
def closed_terms(first, stage, net, SPEC: tl.constexpr):
    """The terms of the exact trace in rows of `closed` from `first` on, and activation'(z₂) there."""
    units, inputs = header(net, CLOSED_UNITS), of(net, 1, UNITS)
    at, d1 = net.params + header(net, CLOSED), layer(net, stage.d, 1)
    p = product(at, inputs, 1, first, units, inputs, d1, SPEC.wide, SPEC)
    d = tl.full(p.shape, 1.0, SPEC.compute)
    if SPEC.closed == 2:
        unit = first + tl.arange(0, SPEC.wide)
        d = tl.load(rows(layer(net, stage.d, 2), unit), mask=(unit < units)[:, None], other=0.0)
    return p, d


@triton.jit
def rates(stage, net, tile, SPEC: tl.constexpr):
    """Tr ∂f/∂y, ‖f‖² and Σ weight·‖∂f/∂y ε‖² (ROWS,), zeros for what is not integrated."""
    trace, kinetic = tl.zeros((ROWS,), SPEC.compute), tl.zeros((ROWS,), SPEC.compute)
    jacobian = tl.zeros((ROWS,), SPEC.compute)
    if SPEC.kinetic:
        kinetic = inner(stage.f, stage.f, of(net, 0, UNITS), SPEC)
    if SPEC.closed > 0:
        for i in range(0, header(net, CLOSED_UNITS), SPEC.wide):
            p, d = closed_terms(i, stage, net, SPEC)
            trace += tl.sum(p * d, 0)
    elif SPEC.trace:
        for m in range(0, tile.count):
            one, square = push(m, stage, net, tile, SPEC)
            trace += one
            jacobian += square
            tl.debug_barrier()
        share = weight(net)
        trace, jacobian = share * trace, share * jacobian
    return trace, kinetic, jacobian


@triton.jit
def weight(net):
    """That of a direction in the trace."""
    return tl.load(net.tableau + (net.stages + 3) * net.stages)

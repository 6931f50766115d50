"""The masked autoregressive transform in Triton: one kernel forward and inverse, one backward.

A program takes ROWS samples at a time through the whole transform: nothing but x, y, the log-det
and, in the backward, the tape is ever stored per sample of the batch.

The inverse is a blocked triangular solve. Step r computes the hidden units of rank r, layer after
layer, then the outputs that see them, then the features of rank r + 1. Before a block of `block`
steps its units take, in one matrix product, what all finished units contribute; so each weight is
read once per tile. The backward of the inverse is the transposed solve, steps descending.

Counted for H = 256, two hidden layers, D = 64 and float32: half of the dense network's 115 thousand
products per sample, and per tile 230 kB of weights, which all programs share through L2, and the
tile's state, 90 kB per plane. Products with finished units run in tiles of 64 × 32 sums, 16 per
thread; a step has few units, and there latency counts: (levels · layers) barriers follow each other,
so that several programs on a multiprocessor are what hides it. Products are exact float32 ("ieee").
"""

import triton
import triton.language as tl

from flowkern.ops._affine_coupling import triton as affine
from flowkern.ops._affine_coupling.triton import ADDITIVE
from flowkern.ops._masked_autoregressive.triton_layers import (
    FIRST,
    NARROW,
    ROWS,
    TAPE_V,
    WIDE,
    Net,
    Tile,
    _of,
    layer,
    layer_back,
    number,
    on_tape,
    rows_of,
    start,
    units,
    upto,
)
from flowkern.ops._rational_quadratic_spline import triton_element as spline

ELEMENTS = tl.constexpr(128)  # transformed at a time, one per thread


@triton.jit
def _tile(first, N, workspace, total, tape, SPEC: tl.constexpr):
    """The tile of samples from `first` on, with the program's own part of the workspace."""
    n = first + tl.arange(0, ROWS)
    plane = total.to(tl.int64) * ROWS
    u = workspace + tl.program_id(0) * (4 if SPEC.backward else 2) * plane
    return Tile(first, n, n < N, N, u, u + plane, u + 2 * plane, u + 3 * plane, tape)


@triton.jit
def _read_features(x, x_n, x_d, plane, net, tile, SPEC: tl.constexpr):
    """Features of all samples, sorted, to the rows of layer 0."""
    features = units(net, 0)
    for i in range(0, features, WIDE):
        place = i + tl.arange(0, WIDE)
        used = place < features
        at = x + number(net, 0, place, used)[:, None] * x_d + tile.n[None, :] * x_n
        values = tl.load(at, mask=used[:, None] & tile.here[None, :], other=0.0).to(SPEC.compute)
        tl.store(rows_of(net, 0, plane, place), values, mask=used[:, None])


@triton.jit
def _write_features(plane, out, net, tile):
    """And back, to a contiguous tensor."""
    features = units(net, 0)
    for i in range(0, features, WIDE):
        place = i + tl.arange(0, WIDE)
        used = place < features
        values = tl.load(rows_of(net, 0, plane, place), mask=used[:, None], other=0.0)
        at = out + number(net, 0, place, used)[:, None] + tile.n[None, :] * features
        tl.store(at, values, mask=used[:, None] & tile.here[None, :])


@triton.jit
def _places(i, end, net, tile):
    """A tile of elements, from the feature at place i on: its places, samples and columns of x."""
    e = tl.arange(0, ELEMENTS)
    place, n = i + e // ROWS, tile.first + e % ROWS
    used = (place < end) & (n < tile.N)
    return place, n, used, number(net, 0, place, used)


@triton.jit
def _row(net, k, plane, place):
    """The element's entry in the row of layer k's unit at `place`."""
    return plane + (_of(net, k, FIRST) + place) * ROWS + tl.arange(0, ELEMENTS) % ROWS


@triton.jit
def _affine_parameters(first, used, SPEC: tl.constexpr):
    shift, raw = tl.load(first + SPEC.shift * ROWS, mask=used, other=0.0), 0.0
    if SPEC.kind != ADDITIVE:
        raw = tl.load(first + SPEC.raw * ROWS, mask=used, other=0.0)
    return shift, raw


@triton.jit
def _elements(logabsdet, first, end, x, x_n, x_d, y, net, tile, SPEC: tl.constexpr):
    """y of the features in [first, end), in the inverse also for the conditioner; logabsdet + theirs."""
    for i in range(first, end, ELEMENTS // ROWS):
        place, n, used, d = _places(i, end, net, tile)
        z = tl.load(x + n * x_n + d * x_d, mask=used, other=0.0)
        params = _row(net, net.layers, tile.u, place * SPEC.parameters)
        if SPEC.spline is not None:
            shape: tl.constexpr = SPEC.spline  # Triton 3.6 would pass the bare object on
            value, log_slope = spline.transform(z, params, ROWS, place, used, None, shape)
        else:
            shift, raw = _affine_parameters(params, used, SPEC)
            value, log_slope = affine.transform(
                z, shift, raw, SPEC.inverse, SPEC.kind, SPEC.a, SPEC.b, SPEC.prefactor,
                SPEC.shift_prefactor,
            )  # fmt: skip
        tl.store(y + n * units(net, 0) + d, value, mask=used)
        if SPEC.inverse:
            tl.store(_row(net, 0, tile.u, place), value, mask=used)
        logabsdet += tl.where(used, log_slope, 0.0)
    return logabsdet


@triton.jit
def _elements_back(first, end, x, x_n, x_d, grad_logabsdet, gl_n, net, tile, SPEC: tl.constexpr):
    """From the cotangents of y to those of x, in the same rows, and to those of the parameters."""
    for i in range(first, end, ELEMENTS // ROWS):
        place, n, used, d = _places(i, end, net, tile)
        z = tl.load(x + n * x_n + d * x_d, mask=used, other=0.0)
        gl = tl.load(grad_logabsdet + n * gl_n, mask=used, other=0.0)
        grad = _row(net, 0, tile.grad, place)
        gy = tl.load(grad, mask=used, other=0.0)
        params = _row(net, net.layers, tile.u, place * SPEC.parameters)
        to = _row(net, net.layers, tile.grad, place * SPEC.parameters)
        if SPEC.spline is not None:
            shape: tl.constexpr = SPEC.spline
            gz = spline.transform_vjp(z, gy, gl, params, ROWS, to, ROWS, place, used, None, shape)
        else:
            shift, raw = _affine_parameters(params, used, SPEC)
            gz, grad_shift, grad_raw = affine.transform_vjp(
                z, shift, raw, gy, gl, SPEC.inverse, SPEC.kind, SPEC.a, SPEC.b, SPEC.prefactor,
                SPEC.shift_prefactor,
            )  # fmt: skip
            tl.store(to + SPEC.shift * ROWS, grad_shift, mask=used)
            if SPEC.kind != ADDITIVE:
                tl.store(to + SPEC.raw * ROWS, grad_raw, mask=used)
        tl.store(grad, gz, mask=used)


@triton.jit
def _evaluate(net, tile, SPEC: tl.constexpr):
    """The whole conditioner at known features."""
    for k in range(1, net.layers + 1):
        end, stop = units(net, k), units(net, k - 1)
        layer(k, 0, end, 0, stop, net, tile, WIDE, SPEC.terms, False, True, SPEC)
        tl.debug_barrier()
        layer(k, 0, end, 0, 0, net, tile, NARROW, True, True, False, SPEC)
        tl.debug_barrier()


@triton.jit
def _solve(logabsdet, x, x_n, x_d, y, levels, block, net, tile, SPEC: tl.constexpr):
    """The inverse: block after block, and rank after rank within it."""
    for low in range(0, levels, block):
        for k in range(1, net.layers + 1):
            first, end = upto(net, k, low - 1), upto(net, k, tl.minimum(low + block, levels) - 1)
            done = upto(net, k - 1, low - 1)
            layer(k, first, end, 0, done, net, tile, WIDE, SPEC.terms, False, False, SPEC)
        tl.debug_barrier()
        for rank in range(low, tl.minimum(low + block, levels)):
            for k in range(1, net.layers + 1):
                first, end = upto(net, k, rank - 1), upto(net, k, rank)
                start, stop = upto(net, k - 1, low - 1), upto(net, k - 1, rank)
                layer(k, first, end, start, stop, net, tile, NARROW, True, True, False, SPEC)
                tl.debug_barrier()
            first, end = upto(net, 0, rank), upto(net, 0, rank + 1)
            logabsdet = _elements(logabsdet, first, end, x, x_n, x_d, y, net, tile, SPEC)
            tl.debug_barrier()
    return logabsdet


@triton.jit(do_not_specialize=["N", "total", "levels", "block", "layers", "width"])
def _forward_kernel(
    N, total, levels, block, layers, width, table, slopes, order, ends, ranks, weights, shared,
    each, workspace, x, x_n, x_d, y, logabsdet, SPEC: tl.constexpr,
):  # fmt: skip
    net = Net(layers, table, slopes, order, ends, ranks, width, weights, shared, each)
    for first in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        tile = _tile(tl.cast(first, tl.int64), N, workspace, total, x, SPEC)
        sums = tl.zeros((ELEMENTS,), SPEC.compute)
        if SPEC.terms:
            start(net, tile, SPEC)
            tl.debug_barrier()
        if SPEC.inverse:
            sums = _solve(sums, x, x_n, x_d, y, levels, block, net, tile, SPEC)
        else:
            _read_features(x, x_n, x_d, tile.u, net, tile, SPEC)
            tl.debug_barrier()
            _evaluate(net, tile, SPEC)
            sums = _elements(sums, 0, units(net, 0), x, x_n, x_d, y, net, tile, SPEC)
        sums = tl.sum(tl.reshape(sums, (ELEMENTS // ROWS, ROWS)), 0)
        tl.store(logabsdet + tile.n, sums, mask=tile.here)
        tl.debug_barrier()  # the next tile takes the same memory


@triton.jit
def _back(x, x_n, x_d, grad_logabsdet, gl_n, net, tile, SPEC: tl.constexpr):
    """The backward of the forward transform: all elements first, then layer by layer."""
    features = units(net, 0)
    _elements_back(0, features, x, x_n, x_d, grad_logabsdet, gl_n, net, tile, SPEC)
    tl.debug_barrier()
    for i in range(1, net.layers):
        k = net.layers - i
        end, stop = units(net, k), units(net, k + 1)
        layer_back(k, 0, end, 0, stop, net, tile, WIDE, False, True, SPEC)
        tl.debug_barrier()
        layer_back(k, 0, end, 0, 0, net, tile, NARROW, True, False, SPEC)
        tl.debug_barrier()
    layer_back(0, 0, features, 0, units(net, 1), net, tile, WIDE, False, True, SPEC)


@triton.jit
def _solve_back(x, x_n, x_d, grad_logabsdet, gl_n, levels, block, net, tile, SPEC: tl.constexpr):
    """The backward of the inverse: the transposed solve, ranks descending."""
    for i in range(1, net.layers):  # units that no output sees get nothing back
        k = net.layers - i
        first = upto(net, k, levels - 1)
        layer_back(k, first, units(net, k), 0, 0, net, tile, NARROW, True, False, SPEC)
        tl.debug_barrier()
    blocks = tl.cdiv(levels, block)
    for b in range(0, blocks):
        low = (blocks - 1 - b) * block
        high = tl.minimum(low + block, levels)  # steps in [low, high), features one rank higher
        for k in range(0, net.layers):
            of = tl.where(k == 0, 1, 0)
            first, end = upto(net, k, low + of - 1), upto(net, k, high + of - 1)
            start, stop = upto(net, k + 1, high - 1), upto(net, k + 1, levels - 1)
            layer_back(k, first, end, start, stop, net, tile, WIDE, False, False, SPEC)
        tl.debug_barrier()
        for r in range(low, high):
            rank = low + high - 1 - r
            last = upto(net, 1, high - 1)
            first, end = upto(net, 0, rank), upto(net, 0, rank + 1)
            layer_back(0, first, end, upto(net, 1, rank), last, net, tile, NARROW, False, False, SPEC)
            tl.debug_barrier()
            _elements_back(first, end, x, x_n, x_d, grad_logabsdet, gl_n, net, tile, SPEC)
            tl.debug_barrier()
            for j in range(1, net.layers):
                k = net.layers - j
                first, end = upto(net, k, rank - 1), upto(net, k, rank)
                start, stop = upto(net, k + 1, rank - 1), upto(net, k + 1, high - 1)
                layer_back(k, first, end, start, stop, net, tile, NARROW, True, False, SPEC)
                tl.debug_barrier()


@triton.jit
def _outputs_on_tape(net, tile):
    """The cotangents of the outputs, which no layer behind sent."""
    k = net.layers
    for i in range(0, units(net, k), WIDE):
        place = i + tl.arange(0, WIDE)
        used = place < units(net, k)
        grad = tl.load(rows_of(net, k, tile.grad, place), mask=used[:, None], other=0.0)
        on_tape(grad, _of(net, k, TAPE_V), number(net, k, place, used), used, tile)


@triton.jit(do_not_specialize=["N", "total", "levels", "block", "layers", "width"])
def _backward_kernel(
    N, total, levels, block, layers, width, table, slopes, order, ends, ranks, weights, shared,
    each, workspace, x, x_n, x_d, known, known_n, known_d, grad_y, gy_n, gy_d, grad_logabsdet, gl_n,
    grad_x, tape, SPEC: tl.constexpr,
):  # fmt: skip
    net = Net(layers, table, slopes, order, ends, ranks, width, weights, shared, each)
    for first in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        tile = _tile(tl.cast(first, tl.int64), N, workspace, total, tape, SPEC)
        _read_features(known, known_n, known_d, tile.u, net, tile, SPEC)
        _read_features(grad_y, gy_n, gy_d, tile.grad, net, tile, SPEC)
        tl.debug_barrier()
        _evaluate(net, tile, SPEC)
        if SPEC.inverse:
            _solve_back(x, x_n, x_d, grad_logabsdet, gl_n, levels, block, net, tile, SPEC)
        else:
            _back(x, x_n, x_d, grad_logabsdet, gl_n, net, tile, SPEC)
        tl.debug_barrier()
        _write_features(tile.grad, grad_x, net, tile)
        if SPEC.tape:
            _outputs_on_tape(net, tile)
        tl.debug_barrier()  # the next tile takes the same memory

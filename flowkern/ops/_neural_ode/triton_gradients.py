"""The backward of the field in Triton: the transposed network, and gradients of the parameters."""

import triton
import triton.language as tl

from flowkern.ops._neural_ode.triton_field import (
    BIAS,
    CLOSED,
    CLOSED_UNITS,
    FREQUENCIES,
    FREQUENCY_COUNT,
    NARROW,
    PLANE_G,
    PLANE_GT,
    PLANE_ROW_BIAS,
    PLANE_T,
    PLANE_V,
    ROW,
    ROWS,
    SIZES,
    SQUARE,
    STARTS,
    UNITS,
    WEIGHT,
    back,
    closed_terms,
    header,
    inner,
    layer,
    of,
    plane,
    product,
    push,
    rows,
    time_weight,
    weight,
)
from flowkern.ops._triton_random import sincos


@triton.jit
def _add_outer(grads, share, g, u, units, inputs, SPEC: tl.constexpr):
    """grads (units, inputs) + share Σ g uᵀ, summed over the samples."""
    for i in range(0, units, SQUARE):
        unit = i + tl.arange(0, SQUARE)
        left = tl.load(rows(g, unit), mask=(unit < units)[:, None], other=0.0)
        for j in range(0, inputs, SQUARE):
            k = j + tl.arange(0, SQUARE)
            right = tl.load(rows(u, k), mask=(k < inputs)[:, None], other=0.0)
            sums = tl.dot(left, tl.trans(right), input_precision="ieee", out_dtype=SPEC.compute)
            at = grads + unit[:, None] * inputs + k[None, :]
            used = (unit < units)[:, None] & (k < inputs)[None, :]
            tl.store(at, tl.load(at, mask=used, other=0.0) + share * sums, mask=used)


@triton.jit
def _add_weight(k, share, g, u, net, SPEC: tl.constexpr):
    """The gradient of layer k's weight, from the planes of cotangents and activations."""
    grads = net.grads + of(net, k, WEIGHT)
    units, inputs = of(net, k, UNITS), of(net, k - 1, UNITS)
    _add_outer(grads, share, layer(net, g, k), layer(net, u, k - 1), units, inputs, SPEC)


@triton.jit
def _add(at, value, net):
    """Adds to the gradients of what lies at `at` in params."""
    tl.store(net.grads + at, tl.load(net.grads + at) + value)


@triton.jit
def _add_bias(k, share, n, stage, net, tile, SPEC: tl.constexpr):
    """The gradients of what layer k adds, of row_bias and time too."""
    units = of(net, k, UNITS)
    g, each = layer(net, plane(net, tile, PLANE_G), k), plane(net, tile, PLANE_ROW_BIAS)
    for i in range(0, units, NARROW):
        unit = i + tl.arange(0, NARROW)
        used = unit < units
        grad = share * tl.load(rows(g, unit), mask=used[:, None], other=0.0)
        at, total = net.grads + of(net, k, BIAS) + unit, tl.sum(grad, 1)
        tl.store(at, tl.load(at, mask=used, other=0.0) + total, mask=used)
        if SPEC.time > 0:
            if k == 1:
                _add_time(total, unit, used, n, stage, net, SPEC)
        if SPEC.row_bias:
            there = tl.where(k == 1, used, False)[:, None]
            sums = tl.load(rows(each, unit), mask=there, other=0.0)
            tl.store(rows(each, unit), sums + grad, mask=there)


@triton.jit
def _add_column(total, unit, column, phi, used, net, SPEC: tl.constexpr):
    """The gradient of a column of W beside φ(t), and what that φ receives."""
    place, w = time_weight(net, unit, column, used, SPEC)
    at = net.grads + place
    tl.store(at, tl.load(at, mask=used, other=0.0) + total * phi, mask=used)
    return tl.sum(total * w, 0)


@triton.jit
def _add_time(total, unit, used, n, stage, net, SPEC: tl.constexpr):
    """The gradients of W φ(t): of W, the frequencies and the time of the stage."""
    t = stage.t
    if SPEC.time == 1:
        of_t = _add_column(total, unit, 0, t, used, net, SPEC)
    else:
        of_t, count = 0 * t, header(net, FREQUENCY_COUNT)
        for f in range(0, count):
            at = header(net, FREQUENCIES) + f
            omega = tl.load(net.params + at)
            sine, cosine = sincos(omega * t)
            of_cosine = _add_column(total, unit, f, cosine, used, net, SPEC)
            of_sine = _add_column(total, unit, count + f, sine, used, net, SPEC)
            of_angle = cosine * of_sine - sine * of_cosine
            _add(at, t * of_angle, net)
            of_t += omega * of_angle
    _add(header(net, STARTS) + n // net.steps, of_t, net)
    _add(header(net, SIZES) + n // net.steps, stage.after * of_t, net)


@triton.jit
def _pull(m, trace_bar, jacobian_bar, share, stage, net, tile, SPEC: tl.constexpr):
    """The way back of direction m's tangents: what they send to g, and the gradients of the weights."""
    t, v = plane(net, tile, PLANE_T), plane(net, tile, PLANE_V)
    g, gt = plane(net, tile, PLANE_G), plane(net, tile, PLANE_GT)
    k, features = net.layers, of(net, 0, UNITS)
    last, to = layer(net, t, k), layer(net, gt, k)
    for i in range(0, features, NARROW):
        row = i + tl.arange(0, NARROW)
        used = (row < features)[:, None]
        grad = trace_bar[None, :] * tl.load(rows(t, row), mask=used, other=0.0)
        if SPEC.jacobian:
            grad += 2 * jacobian_bar[None, :] * tl.load(rows(last, row), mask=used, other=0.0)
        tl.store(rows(to, row), grad, mask=used)
    tl.debug_barrier()
    _add_weight(k, share, gt, t, net, SPEC)
    for j in range(1, net.layers):
        k = net.layers - j
        units, first, source = of(net, k, UNITS), of(net, k, ROW), layer(net, gt, k + 1)
        for i in range(0, units, SPEC.wide):
            unit = i + tl.arange(0, SPEC.wide)
            used, row = (unit < units)[:, None], first + unit
            grad = back(net, k, i, source, SPEC.wide, SPEC)
            d = tl.load(rows(stage.d, row), mask=used, other=0.0)
            dd = tl.load(rows(stage.dd, row), mask=used, other=0.0)
            tangent = tl.load(rows(v, row), mask=used, other=0.0)
            before = tl.load(rows(g, row), mask=tl.where(m > 0, used, False), other=0.0)
            tl.store(rows(g, row), before + grad * tangent * dd, mask=used)
            tl.store(rows(gt, row), grad * d, mask=used)
        tl.debug_barrier()
        _add_weight(k, share, gt, t, net, SPEC)
    tl.debug_barrier()


@triton.jit
def _closed_back(trace_bar, share, stage, net, tile, SPEC: tl.constexpr):
    """The way back of the closed form of the trace: what it sends to g, and its own gradient."""
    g, gt = plane(net, tile, PLANE_G), plane(net, tile, PLANE_GT)
    rank, units = header(net, CLOSED_UNITS), of(net, 1, UNITS)
    trace = tl.zeros((ROWS,), SPEC.compute)
    for i in range(0, rank, SPEC.wide):
        unit = i + tl.arange(0, SPEC.wide)
        used = (unit < rank)[:, None]
        p, d = closed_terms(i, stage, net, SPEC)
        trace += tl.sum(p * d, 0)
        tl.store(rows(gt, unit), trace_bar[None, :] * d, mask=used)
        if SPEC.closed == 2:
            dd = tl.load(rows(layer(net, stage.dd, 2), unit), mask=used, other=0.0)
            tl.store(rows(layer(net, g, 2), unit), trace_bar[None, :] * dd * p, mask=used)
    tl.debug_barrier()
    d1, closed = layer(net, stage.d, 1), header(net, CLOSED)
    _add_outer(net.grads + closed, share, gt, d1, rank, units, SPEC)
    for i in range(0, units, SPEC.wide):
        unit = i + tl.arange(0, SPEC.wide)
        used = (unit < units)[:, None]
        grad = product(net.params + closed, 1, units, i, units, rank, gt, SPEC.wide, SPEC)
        dd = tl.load(rows(layer(net, stage.dd, 1), unit), mask=used, other=0.0)
        tl.store(rows(layer(net, g, 1), unit), grad * dd, mask=used)
    tl.debug_barrier()
    return trace


@triton.jit
def _trace_back(trace_bar, jacobian_bar, share, stage, net, tile, SPEC: tl.constexpr):
    """The way back of both integrands that the tangents give, and their values times the cotangents."""
    if SPEC.closed > 0:
        total = trace_bar * _closed_back(trace_bar, share, stage, net, tile, SPEC)
    else:
        one, total = weight(net), tl.zeros((ROWS,), SPEC.compute)
        trace_bar, jacobian_bar = one * trace_bar, one * jacobian_bar
        for m in range(0, tile.count):
            trace, jacobian = push(m, stage, net, tile, SPEC)
            total += trace_bar * trace + jacobian_bar * jacobian
            _pull(m, trace_bar, jacobian_bar, share, stage, net, tile, SPEC)
    return total


@triton.jit
def _kinetic_back(kinetic_bar, stage, net, g, SPEC: tl.constexpr):
    """Adds 2 f times the cotangent of ‖f‖² to that of f."""
    features = of(net, 0, UNITS)
    for i in range(0, features, NARROW):
        row = i + tl.arange(0, NARROW)
        used = (row < features)[:, None]
        f = tl.load(rows(stage.f, row), mask=used, other=0.0)
        grad = tl.load(rows(g, row), mask=used, other=0.0)
        tl.store(rows(g, row), grad + 2 * kinetic_bar[None, :] * f, mask=used)
    tl.debug_barrier()


@triton.jit
def field_back(
    trace_bar, kinetic_bar, jacobian_bar, share, share_of_step, n, to, stage, net, tile,
    SPEC: tl.constexpr,
):  # fmt: skip
    """The cotangent of the stage's state to `to`, from that of f (in g) and those of the rates.

    The gradients of parameters grow by `share` times theirs, and that of step n by share_of_step
    times the inner product of the cotangents with f and the rates.
    """
    last, features = net.layers, of(net, 0, UNITS)
    g = plane(net, tile, PLANE_G)
    of_f = layer(net, g, last)
    total = inner(of_f, stage.f, features, SPEC)
    if SPEC.kinetic:
        total += kinetic_bar * inner(stage.f, stage.f, features, SPEC)
        tl.debug_barrier()  # before g is written over
        _kinetic_back(kinetic_bar, stage, net, of_f, SPEC)
    if SPEC.trace:
        total += _trace_back(trace_bar, jacobian_bar, share, stage, net, tile, SPEC)
    _add(header(net, SIZES) + n // net.steps, share_of_step * tl.sum(total, 0), net)
    for j in range(0, last - 1):
        k = last - j
        _add_weight(k, share, g, stage.u, net, SPEC)
        _add_bias(k, share, n, stage, net, tile, SPEC)
        units, first, source = of(net, k - 1, UNITS), of(net, k - 1, ROW), layer(net, g, k)
        for i in range(0, units, SPEC.wide):
            unit = i + tl.arange(0, SPEC.wide)
            used, row = (unit < units)[:, None], first + unit
            grad = back(net, k - 1, i, source, SPEC.wide, SPEC)
            grad *= tl.load(rows(stage.d, row), mask=used, other=0.0)
            if SPEC.trace:
                grad += tl.load(rows(g, row), mask=used, other=0.0)
            tl.store(rows(g, row), grad, mask=used)
        tl.debug_barrier()
    _add_weight(1, share, g, stage.u, net, SPEC)
    _add_bias(1, share, n, stage, net, tile, SPEC)
    for i in range(0, features, NARROW):
        row = i + tl.arange(0, NARROW)
        grad = back(net, 0, i, layer(net, g, 1), NARROW, SPEC)
        tl.store(rows(to, row), grad, mask=(row < features)[:, None])
    tl.debug_barrier()

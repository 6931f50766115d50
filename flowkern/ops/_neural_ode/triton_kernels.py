"""A neural ODE solve in Triton: one kernel forward, one backward.

A program takes ROWS samples at a time through all steps; nothing but what is kept leaves it. How it
works within a step is said in triton_field.py.
"""

import triton
import triton.language as tl

from flowkern.ops._neural_ode.triton_field import (
    NARROW,
    PLANE_G,
    PLANE_K,
    PLANE_L,
    PLANE_LAM,
    PLANE_ROW_BIAS,
    PLANE_STATES,
    PLANE_Y,
    ROWS,
    UNITS,
    WORKSPACE,
    Net,
    Tile,
    field,
    header,
    layer,
    of,
    plane,
    rates,
    read,
    rows,
    stage_of,
    step_size,
)
from flowkern.ops._neural_ode.triton_gradients import field_back


@triton.jit
def _tile(first, N, workspace, net, row_bias, directions, count, m_stride, n_stride, d_stride):
    """The tile of samples from `first` on, with the program's own part of the workspace."""
    n = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
    base = workspace + tl.cast(tl.program_id(0), tl.int64) * header(net, WORKSPACE) * ROWS
    last = tl.minimum(n, N - 1)
    return Tile(last, n < N, base, row_bias, directions, count, m_stride, n_stride, d_stride)


@triton.jit
def _clear(base, count, SPEC: tl.constexpr):
    """Zeros in `count` rows from `base` on."""
    for i in range(0, count, NARROW):
        row = i + tl.arange(0, NARROW)
        zeros = tl.zeros((NARROW, ROWS), SPEC.compute)
        tl.store(rows(base, row), zeros, mask=(row < count)[:, None])


@triton.jit
def _write(base, to, n, here, count):
    """`count` rows from `base` on to a contiguous (N, count)."""
    for i in range(0, count, NARROW):
        row = i + tl.arange(0, NARROW)
        used = (row < count)[:, None]
        values = tl.load(rows(base, row), mask=used, other=0.0)
        tl.store(to + n[None, :] * count + row[:, None], values, mask=used & here[None, :])


@triton.jit
def _combine(to, base, share, h, coefficients, stride, slopes, net, SPEC: tl.constexpr):
    """share·base + h Σ_j a_j k_j, in rows of the state; a_j = 0 leaves k_j unread."""
    features = of(net, 0, UNITS)
    for i in range(0, features, NARROW):
        row = i + tl.arange(0, NARROW)
        used = (row < features)[:, None]
        total = tl.zeros((NARROW, ROWS), SPEC.compute)
        for j in range(0, net.stages):
            a = tl.load(coefficients + j * stride)
            if a != 0:
                total += a * tl.load(rows(slopes + j * features * ROWS, row), mask=used, other=0.0)
        values = share * tl.load(rows(base, row), mask=used, other=0.0) + h * total
        tl.store(rows(to, row), values, mask=used)
    tl.debug_barrier()


@triton.jit
def _state_after(n, steps, every, ends, kept, size):
    """Where the state after step n is kept; a state of all samples has `size` numbers."""
    interval, part, inner = n // steps, n % steps // every, steps // every - 1
    place = kept + (tl.cast(interval, tl.int64) * inner + part) * size
    return tl.where(part == inner, ends + tl.cast(interval, tl.int64) * size, place)


@triton.jit
def _advance(y, to, n, trace, kinetic, jacobian, net, tile, RATES: tl.constexpr, SPEC: tl.constexpr):
    """Step n from the state in `y` to that in `to`, and the three integrals after it."""
    h = step_size(n, net)
    k, b = plane(net, tile, PLANE_K), net.tableau + net.stages * net.stages
    for i in range(0, net.stages):
        stage = stage_of(n, i, net, tile, SPEC)
        _combine(stage.u, y, 1, h, net.tableau + i * net.stages, 1, k, net, SPEC)
        field(stage, net, tile, SPEC)
        if RATES:
            one, two, three = rates(stage, net, tile, SPEC)
            share = h * tl.load(b + i)
            trace += share * one
            kinetic += share * two
            jacobian += share * three
    _combine(to, y, 1, h, b, 1, k, net, SPEC)
    return trace, kinetic, jacobian


@triton.jit(do_not_specialize=["N", "intervals", "steps", "every", "layers", "stages", "count"])
def _forward_kernel(
    N, intervals, steps, every, layers, stages, count, table, slopes, tableau, params, workspace, row_bias,
    directions, m_stride, n_stride, d_stride, y, ends, sums, kept, SPEC: tl.constexpr,
):  # fmt: skip
    net = Net(layers, steps, table, slopes, stages, tableau, params, params)
    features = of(net, 0, UNITS)
    for begin in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        tile = _tile(begin, N, workspace, net, row_bias, directions, count, m_stride, n_stride, d_stride)
        state = plane(net, tile, PLANE_Y)
        read(state, y, features, 1, tile.n, tile.n >= 0, features, False)
        tl.debug_barrier()
        trace, kinetic = tl.zeros((ROWS,), SPEC.compute), tl.zeros((ROWS,), SPEC.compute)
        jacobian = tl.zeros((ROWS,), SPEC.compute)
        for n in range(0, intervals * steps):
            trace, kinetic, jacobian = _advance(state, state, n, trace, kinetic, jacobian, net, tile, True, SPEC)
            if (n + 1) % every == 0:
                to = _state_after(n, steps, every, ends, kept, N * features)
                _write(state, to, tile.n, tile.here, features)
            if (n + 1) % steps == 0:
                at = sums + 3 * tl.cast(n // steps, tl.int64) * N + tile.n
                tl.store(at, trace, mask=tile.here)
                tl.store(at + N, kinetic, mask=tile.here)
                tl.store(at + 2 * N, jacobian, mask=tile.here)
        tl.debug_barrier()  # the next tile takes the same memory


@triton.jit
def _transpose(n, trace_bar, kinetic_bar, jacobian_bar, net, tile, SPEC: tl.constexpr):
    """The transpose of step n, which was just taken: lam becomes the cotangent before it."""
    h, stages = step_size(n, net), net.stages
    lam, slopes = plane(net, tile, PLANE_LAM), plane(net, tile, PLANE_L)
    g = layer(net, plane(net, tile, PLANE_G), net.layers)
    for j in range(0, stages):
        i = stages - 1 - j
        b = tl.load(net.tableau + stages * stages + i)
        _combine(g, lam, b, h, net.tableau + i, stages, slopes, net, SPEC)
        field_back(
            b * trace_bar, b * kinetic_bar, b * jacobian_bar, h, 1, n,
            slopes + i * of(net, 0, UNITS) * ROWS, stage_of(n, i, net, tile, SPEC), net, tile, SPEC,
        )  # fmt: skip
    _combine(lam, lam, 1, h, net.tableau + (stages + 1) * stages, 1, slopes, net, SPEC)


@triton.jit
def _discrete_back(
    first, every, source, trace_bar, kinetic_bar, jacobian_bar, net, tile, SPEC: tl.constexpr
):  # fmt: skip
    """The transposes of the steps from `first` on to the next state that was kept, the last step first.

    source: the state before them. The workspace holds the stages of one step only, so all but the last
    step are taken twice.
    """
    states, features = plane(net, tile, PLANE_STATES), of(net, 0, UNITS)
    read(states, source, features, 1, tile.n, tile.n >= 0, features, False)
    tl.debug_barrier()
    zero = tl.zeros((ROWS,), SPEC.compute)
    for i in range(0, 2 * every - 1):
        j = tl.minimum(i, 2 * every - 2 - i)
        n, state = first + j, states + j * features * ROWS
        _advance(state, state + features * ROWS, n, zero, zero, zero, net, tile, False, SPEC)
        if i >= every - 1:
            _transpose(n, trace_bar, kinetic_bar, jacobian_bar, net, tile, SPEC)


@triton.jit
def _adjoint_step(y, n, trace_bar, kinetic_bar, jacobian_bar, net, tile, SPEC: tl.constexpr):
    """Step n of the adjoint equation: y and lam, solved back from the step's end."""
    h, stages = step_size(n, net), net.stages
    lam, slopes = plane(net, tile, PLANE_LAM), plane(net, tile, PLANE_L)
    k, b = plane(net, tile, PLANE_K), net.tableau + stages * stages
    g = layer(net, plane(net, tile, PLANE_G), net.layers)
    for i in range(0, stages):
        stage, row = stage_of(n, i, net, tile, SPEC), net.tableau + i * stages
        _combine(stage.u, y, 1, -h, row, 1, k, net, SPEC)
        field(stage, net, tile, SPEC)
        _combine(g, lam, 1, h, row, 1, slopes, net, SPEC)
        share = tl.load(b + i)
        field_back(
            trace_bar, kinetic_bar, jacobian_bar, h * share, share, n,
            slopes + i * of(net, 0, UNITS) * ROWS, stage, net, tile, SPEC,
        )  # fmt: skip
    _combine(y, y, 1, -h, b, 1, k, net, SPEC)
    _combine(lam, lam, 1, h, b, 1, slopes, net, SPEC)


@triton.jit
def _adjoint_back(
    first, steps, end, trace_bar, kinetic_bar, jacobian_bar, net, tile, SPEC: tl.constexpr
):  # fmt: skip
    """The adjoint equation over the steps from `first` on to the state `end`."""
    y, features = plane(net, tile, PLANE_Y), of(net, 0, UNITS)
    read(y, end, features, 1, tile.n, tile.n >= 0, features, False)
    tl.debug_barrier()
    for j in range(0, steps):
        _adjoint_step(y, first + steps - 1 - j, trace_bar, kinetic_bar, jacobian_bar, net, tile, SPEC)


@triton.jit(do_not_specialize=["N", "intervals", "steps", "every", "layers", "stages", "count", "total"])
def _backward_kernel(
    N, intervals, steps, every, layers, stages, count, table, slopes, tableau, params, workspace, row_bias,
    directions, m_stride, n_stride, d_stride, y, ends, kept, grad_ends, grad_sums, grad_y, grad_row_bias,
    grads, total, SPEC: tl.constexpr,
):  # fmt: skip
    own = grads + tl.cast(tl.program_id(0), tl.int64) * total
    net = Net(layers, steps, table, slopes, stages, tableau, params, own)
    features, hidden = of(net, 0, UNITS), of(net, 1, UNITS)
    for begin in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        tile = _tile(begin, N, workspace, net, row_bias, directions, count, m_stride, n_stride, d_stride)
        lam, each = plane(net, tile, PLANE_LAM), plane(net, tile, PLANE_ROW_BIAS)
        _clear(lam, features, SPEC)
        if SPEC.row_bias:
            _clear(each, hidden, SPEC)
        tl.debug_barrier()
        trace, kinetic = tl.zeros((ROWS,), SPEC.compute), tl.zeros((ROWS,), SPEC.compute)
        jacobian = tl.zeros((ROWS,), SPEC.compute)
        for j in range(0, intervals):
            k = intervals - 1 - j
            before = tl.cast(k, tl.int64) * N
            at = grad_sums + 3 * before + tile.n
            trace += tl.load(at, mask=tile.here, other=0.0)
            kinetic += tl.load(at + N, mask=tile.here, other=0.0)
            jacobian += tl.load(at + 2 * N, mask=tile.here, other=0.0)
            read(lam, grad_ends + before * features, features, 1, tile.n, tile.here, features, True)
            if SPEC.adjoint:
                end = ends + before * features
                _adjoint_back(k * steps, steps, end, trace, kinetic, jacobian, net, tile, SPEC)
            else:
                for i in range(0, steps // every):
                    first = (k + 1) * steps - (i + 1) * every
                    source = _state_after(first - 1, steps, every, ends, kept, N * features)
                    source = tl.where(first == 0, y, source)
                    _discrete_back(first, every, source, trace, kinetic, jacobian, net, tile, SPEC)
        _write(lam, grad_y, tile.n, tile.here, features)
        if SPEC.row_bias:
            _write(each, grad_row_bias, tile.n, tile.here, hidden)
        tl.debug_barrier()  # the next tile takes the same memory

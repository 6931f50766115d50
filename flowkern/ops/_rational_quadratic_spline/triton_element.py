"""The rational-quadratic spline of one element in Triton: device functions on tiles of elements.

Symbols as in the README: θ ∈ [0, 1] is the position within bin k (from x_k, w wide; from y_k,
h high; s = h/w), ω = 1 − θ, β = θω, p and r the slopes at its left and right knot.

A thread holds all bins of one element in registers, so that softmax, cumulative sum and search
need no exchange between threads: see `_BINS_AXIS`.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from flowkern.ops import _triton
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS

IDENTITY, CIRCULAR, NONE = (tl.constexpr(TAILS[name].code) for name in ("identity", "circular", "none"))
SOFTCLIP = tl.constexpr([*KNOT_MAPS].index("softclip"))

# Tiles hold bins along this axis and elements along the other. Triton deals lanes along the axis of
# longest runs in memory. An element's parameters are one, but the kernels do not let on (p_t, p_k
# are not specialised): lanes along bins would double the instructions, by shuffles and repeated
# scalar work. With no run in sight lanes go along the last axis, in Triton 3.6 along the first.
# Gradients are stored by their runs all the same: Triton transposes them in shared memory.
_BINS_AXIS = 1 if triton.__version__.split(".")[:2] == ["3", "6"] else 0


@dataclass(frozen=True)
class Spec:
    """All that a binary is compiled for; constants too, as Triton would pass them as float32."""

    bins: int
    block_bins: int  # bins, padded to a power of two
    slopes: int  # raw slopes: bins − 1, bins or bins + 1
    block_slopes: int
    inverse: bool
    tails: int
    left: float
    right: float
    bottom: float
    top: float
    min_width: float
    free_width: float  # what the minima of all bins leave
    min_height: float
    free_height: float
    knots: int
    min_slope: float
    softclip: float
    scale: float
    compute: tl.dtype
    axis: int = _BINS_AXIS


def spec_of(
    parameters, compute, inverse, tails, left, right, bottom, top,
    knots, min_width, min_height, min_slope, softclip, scale,
):  # fmt: skip
    """The Spec for this number of raw parameters per element, and arguments as the reference takes them."""
    bins = (parameters + 1) // 3
    slopes = parameters - 2 * bins
    return Spec(
        bins, triton.next_power_of_2(bins), slopes, triton.next_power_of_2(max(slopes, 1)),
        inverse, tails, left, right, bottom, top,
        min_width, 1 - min_width * bins, min_height, 1 - min_height * bins,
        knots, min_slope, softclip, scale, compute,
    )  # fmt: skip


@triton.jit
def _interval(bound, t, here, LOW: tl.constexpr, HIGH: tl.constexpr, COMPUTE: tl.constexpr):
    """The ends of an axis: ∓bound[t], or two constants."""
    if bound is None:
        low, high = tl.full(t.shape, LOW, COMPUTE), tl.full(t.shape, HIGH, COMPUTE)
    else:
        high = tl.load(bound + t, mask=here, other=1.0).to(COMPUTE)
        low = -high
    return low, high


@triton.jit
def _run(count: tl.constexpr, SPEC: tl.constexpr):
    """0 … count − 1 along the axis of bins."""
    return tl.expand_dims(tl.arange(0, count), 1 - SPEC.axis)


@triton.jit
def _each(value, SPEC: tl.constexpr):
    """A value per element, for all its bins."""
    return tl.expand_dims(value, SPEC.axis)


@triton.jit
def _powers(raw, used, i, SPEC: tl.constexpr):
    """e_i = exp(v_i − max v), of which softmax is made, and dv/d(raw)."""
    v = SPEC.scale * tl.load(raw, mask=used, other=0.0).to(SPEC.compute)
    slope = tl.full(v.shape, SPEC.scale, SPEC.compute)
    if SPEC.knots == SOFTCLIP:
        shrink = 1 / (1 + tl.abs(v) * (2 / SPEC.softclip))
        v, slope = v * shrink, slope * shrink * shrink
    v = tl.where(i < SPEC.bins, v, float("-inf"))
    return tl.exp(v - _each(tl.max(v, SPEC.axis), SPEC)), slope


@triton.jit
def _shares(power, low, high, MIN: tl.constexpr, FREE: tl.constexpr, SPEC: tl.constexpr):
    """low, m and g of the knots low + m·i + g·Σ_{j<i} e_j."""
    span = high - low
    return low, span * MIN, span * FREE / tl.sum(power, SPEC.axis)


@triton.jit
def _search(z, power, shares, i, SPEC: tl.constexpr):
    """Number of the bin that holds z; a knot belongs to the bin on its right."""
    low, m, g = shares
    knots = _each(g, SPEC) * tl.cumsum(power, SPEC.axis) + _each(low, SPEC)
    knots += _each(m, SPEC) * (i + 1)
    right_of = (i < SPEC.bins - 1) & (knots <= _each(z, SPEC))
    return tl.sum(right_of.to(tl.int32), SPEC.axis)


@triton.jit
def _edges(power, shares, i, k, SPEC: tl.constexpr):
    """Left end and size of bin k on one axis, Σ e_j below it, and e_k."""
    low, m, g = shares
    below = tl.sum(tl.where(i < _each(k, SPEC), power, 0.0), SPEC.axis)
    here = tl.sum(tl.where(i == _each(k, SPEC), power, 0.0), SPEC.axis)
    # In this order the sum rounds least where knots lie densest, about the middle.
    return (g * below + low) + m * k, g * here + m, below, here


@triton.jit
def _slope(of_t, knot, p_k, here, SPEC: tl.constexpr):
    """Slope at a knot, its derivative by its raw parameter, and the latter's place."""
    place, free = knot, here
    if SPEC.tails == IDENTITY:  # the outer knots have slope 1
        place, free = knot - 1, here & (knot > 0) & (knot < SPEC.bins)
    elif SPEC.tails == CIRCULAR:  # and here a common slope
        place = tl.where(knot == SPEC.bins, 0, knot)
    u = tl.load(of_t + (2 * SPEC.bins + place) * p_k, mask=free, other=0.0).to(SPEC.compute)
    if SPEC.knots == SOFTCLIP:
        shrink = 1 / (1 + tl.abs(u) * (1 / SPEC.softclip))
        slope = tl.exp(u * shrink)
        derivative = slope * shrink * shrink
    else:
        slope, derivative = _triton.softplus(u) + SPEC.min_slope, _triton.sigmoid(u)
    return tl.where(free, slope, 1.0), tl.where(free, derivative, 0.0), place


@triton.jit
def _measure(value, start, size, end, last):
    """How far into its bin a value is, from the left and from the right, both in [0, 1].

    The last bin is measured from the end of the interval, so that end maps to end without error.
    """
    part = _triton.unit(tl.where(last, end - value, value - start) / size)
    return tl.where(last, 1 - part, part), tl.where(last, part, 1 - part)


@triton.jit
def _solve(eta, rest, s, p, r):
    """θ and ω at which the spline has risen by η = 1 − rest of its bin; nothing cancels."""
    a = p * rest - r * eta
    root = tl.sqrt(a * a + 4 * (s * eta) * (s * rest))
    root = tl.where(root == float("inf"), tl.abs(a), root)  # a² overflows, and is all there is beside s²
    nearer = 2 * s * tl.where(a >= 0, eta, rest)
    distance = _triton.unit(nearer / (root + nearer + tl.abs(a)))
    return tl.where(a >= 0, distance, 1 - distance), tl.where(a >= 0, 1 - distance, distance)


@triton.jit
def _locate(z, of_t, p_k, i, t, here, bound, SPEC: tl.constexpr):
    """The bin of each element, from z and the raw parameters at of_t.

    Returns whether z is inside, the bin's number, (x_k, w, y_k, h, θ, ω), the ends of both
    axes, and what else the backward needs of widths and heights (e, dv/du, g, Σ e below, e_k) and
    of the knots' slopes p and r (slope, derivative, place).
    """
    left, right = _interval(bound, t, here, SPEC.left, SPEC.right, SPEC.compute)
    bottom, top = _interval(bound, t, here, SPEC.bottom, SPEC.top, SPEC.compute)
    used = _each(here, SPEC) & (i < SPEC.bins)
    p_k = tl.cast(p_k, tl.int64)  # the parameters of one element may lie far apart
    raw = _each(of_t, SPEC) + i * p_k
    wide, wide_slope = _powers(raw, used, i, SPEC)
    high, high_slope = _powers(raw + SPEC.bins * p_k, used, i, SPEC)
    across = _shares(wide, left, right, SPEC.min_width, SPEC.free_width, SPEC)
    up = _shares(high, bottom, top, SPEC.min_height, SPEC.free_height, SPEC)
    if SPEC.inverse:
        inside, k = (z >= bottom) & (z <= top), _search(z, high, up, i, SPEC)
    else:
        inside, k = (z >= left) & (z <= right), _search(z, wide, across, i, SPEC)
    last = k == SPEC.bins - 1
    x_k, w, below_w, here_w = _edges(wide, across, i, k, SPEC)
    y_k, h, below_h, here_h = _edges(high, up, i, k, SPEC)
    p, r = _slope(of_t, k, p_k, here, SPEC), _slope(of_t, k + 1, p_k, here, SPEC)
    if SPEC.inverse:
        eta, rest = _measure(z, y_k, h, top, last)
        theta, omega = _solve(eta, rest, h / w, p[0], r[0])
    else:
        theta, omega = _measure(z, x_k, w, right, last)
    widths = (wide, wide_slope, across[2], below_w, here_w)
    heights = (high, high_slope, up[2], below_h, here_h)
    place, ends = (x_k, w, y_k, h, theta, omega), (left, right, bottom, top)
    return inside, k, place, ends, widths, heights, p, r


@triton.jit
def _polynomials(theta, omega, s, p, r):
    """N, D − N, M, D with y = y_k + h N/D and dy/dx = s²M/D²: sums of terms of one sign."""
    beta = theta * omega
    rise, rest = s * theta * theta + p * beta, s * omega * omega + r * beta
    return rise, rest, r * theta * theta + 2 * s * beta + p * omega * omega, rise + rest


@triton.jit
def _point(start, size, from_left, from_right, low, high, last):
    """The point of a bin that `_measure` measures, from the end of the interval in the last bin."""
    point = tl.where(last, high - size * from_right, start + size * from_left)
    return _triton.clamp(point, low, high)


@triton.jit
def transform(z, of_t, p_k, t, here, bound, SPEC: tl.constexpr):
    """The result and its log-det for each element z, from its raw parameters at of_t + number·p_k."""
    i = _run(SPEC.block_bins, SPEC)
    inside, k, place, ends, _, _, p, r = _locate(z, of_t, p_k, i, t, here, bound, SPEC)
    x_k, w, y_k, h, theta, omega = place
    rise, rest, steep, base = _polynomials(theta, omega, h / w, p[0], r[0])
    ratio = h / w / base
    log_slope = tl.log(ratio * (ratio * steep))
    last = k == SPEC.bins - 1
    if SPEC.inverse:
        value, log_slope = _point(x_k, w, theta, omega, ends[0], ends[1], last), -log_slope
    else:
        value = _point(y_k, h, rise / base, rest / base, ends[2], ends[3], last)
    if SPEC.tails == NONE:
        value = tl.where(inside, value, float("nan"))
        log_slope = tl.where(inside, log_slope, float("nan"))
    else:
        value, log_slope = tl.where(inside, value, z), tl.where(inside, log_slope, 0.0)
    if bound is not None:
        valid = (ends[1] > 0) & (ends[1] < float("inf"))
        value, log_slope = tl.where(valid, value, float("nan")), tl.where(valid, log_slope, float("nan"))
    return value, log_slope


@triton.jit
def _vjp(gy, gl, place, p, r, INVERSE: tl.constexpr):
    """Cotangents of z, x_k, w, y_k, h, p and r from those of the result and of the log-det.

    The inverse is x with f(x; params) = y. From λ = gx − gl ∂ℓ/∂x, the cotangent of y is λ/f',
    and params take those of the forward spline for gy' = −λ/f' and gl' = −gl; θ's is then −gx w.
    """
    x_k, w, y_k, h, theta, omega = place
    s = h / w
    beta, q = theta * omega, theta * theta
    rise, rest, steep, base = _polynomials(theta, omega, s, p, r)
    ratio = s / base
    slope = ratio * (ratio * steep)
    log_slope_theta = 2 * (
        (r * theta + s * (omega - theta) - p * omega) / steep - (p + r - 2 * s) * (omega - theta) / base
    )
    if INVERSE:
        gtheta = -gy * w
        gz = gy / slope - gl * (log_slope_theta / w / slope)
        gy, gl = -gz, -gl
    else:
        gtheta = gy * slope * w + gl * log_slope_theta
        gz = gtheta / w
    scaled = gy * h * beta / base / base
    both = 2 * gl * beta / base
    gs = scaled * (r * q - p * omega * omega)
    gs += 2 * gl * (1 / s + beta / steep - (q + omega * omega) / base)
    gp = scaled * rest + gl * omega * omega / steep - both
    gr = gl * q / steep - both - scaled * rise
    gw = -(gtheta * theta + gs * s) / w
    # N grows with the slopes, as D does: the cotangent multiplies their quotient.
    return gz, -gtheta / w, gw, gy, gy * (rise / base) + gs / w, gp, gr


@triton.jit
def _store_shares(to, axis, g_start, g_size, k, i, inside, here, SPEC: tl.constexpr):
    """Gradients of the raw widths or heights from those of bin k's left end and size.

    That of e_i is g·(g_start below k, g_size at k, 0 above), less its mean over the softmax.
    """
    power, slope, g, below, at = axis
    mean = (g_start * below + g_size * at) / tl.sum(power, SPEC.axis)
    grad = tl.where(i < _each(k, SPEC), _each(g_start, SPEC), 0.0)
    grad = tl.where(i == _each(k, SPEC), _each(g_size, SPEC), grad) - _each(mean, SPEC)
    grad = power * slope * grad * _each(g, SPEC)
    grad = tl.where(_each(inside, SPEC), grad, 0.0)
    tl.store(to, grad, mask=_each(here, SPEC) & (i < SPEC.bins))


@triton.jit
def transform_vjp(z, gy, gl, of_t, p_k, to_t, gp_k, t, here, bound, SPEC: tl.constexpr):
    """The cotangent of each element z; those of its raw parameters go to to_t + number·gp_k."""
    i, j = _run(SPEC.block_bins, SPEC), _run(SPEC.block_slopes, SPEC)
    gp_k = tl.cast(gp_k, tl.int64)
    inside, k, place, _, wide, high, p, r = _locate(z, of_t, p_k, i, t, here, bound, SPEC)
    gz, gx_k, gw, gy_k, gh, gp, gr = _vjp(gy, gl, place, p[0], r[0], SPEC.inverse)
    if SPEC.tails == NONE:
        gy = tl.zeros_like(gy)  # outside, y does not depend on x
    gz = tl.where(inside, gz, gy)
    to_t = _each(to_t, SPEC)
    to = to_t + i * gp_k
    _store_shares(to, wide, gx_k, gw, k, i, inside, here, SPEC)
    _store_shares(to + SPEC.bins * gp_k, high, gy_k, gh, k, i, inside, here, SPEC)
    gp, gr = tl.where(inside, gp * p[1], 0.0), tl.where(inside, gr * r[1], 0.0)
    g = tl.where(j == _each(p[2], SPEC), _each(gp, SPEC), 0.0)
    g += tl.where(j == _each(r[2], SPEC), _each(gr, SPEC), 0.0)
    used = _each(here, SPEC) & (j < SPEC.slopes)
    tl.store(to_t + (2 * SPEC.bins + j) * gp_k, g, mask=used)
    return gz

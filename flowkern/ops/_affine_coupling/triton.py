"""The affine coupling in Triton: one kernel for forward and inverse, one for their backward.

A program owns BLOCK_N whole rows and walks over their features in blocks, so that the log-det is
summed in one fixed order, without atomics.
"""

import torch
import triton
import triton.language as tl

from flowkern.ops import _launch_parameters, _triton
from flowkern.ops._affine_coupling import scale_map
from flowkern.ops._affine_coupling.native import ARGUMENTS

ADDITIVE, EXP, SOFTCLIP, TANH = (
    tl.constexpr(scale_map.CODES[kind]) for kind in ("additive", "exp", "softclip", "tanh")
)
ATAN, SIGMOID = (tl.constexpr(scale_map.CODES[kind]) for kind in ("atan", "sigmoid"))
RECIPROCAL_SIGMOID = tl.constexpr(scale_map.CODES["reciprocal_sigmoid"])
SOFTPLUS = tl.constexpr(scale_map.CODES["softplus"])


def forward(x, params, *arguments):
    """y (N, D), logabsdet (N,); arguments as `reference.forward` takes them."""
    return torch.ops.flowkern_triton.affine_coupling(x, params, *arguments)


def backward(grad_y, grad_logabsdet, x, params, *arguments):
    """grad_x (N, D) and grad_params (N, T, P), laid out as params is."""
    return torch.ops.flowkern_triton.affine_coupling_backward(grad_y, grad_logabsdet, x, params, *arguments)


def _launch_forward(x, params, index, *arguments):
    _triton.check(x, params, index)
    y, logabsdet = _triton.new_outputs(x, params)
    _triton.launch(
        _forward_kernel, x, _tile("affine_coupling", x, params),
        params.shape[1], x, *x.stride(), params, *params.stride(), _triton.contiguous(index),
        y, logabsdet,
        **_constants(x, params, *arguments),
    )  # fmt: skip
    return y, logabsdet


def _launch_backward(grad_y, grad_logabsdet, x, params, index, *arguments):
    _triton.check(x, params, index)
    grad_x, grad_params = _triton.new_grads(x, params)
    _triton.launch(
        _backward_kernel, x, _tile("affine_coupling_backward", x, params),
        params.shape[1], x, *x.stride(), params, *params.stride(), _triton.contiguous(index),
        grad_y, *grad_y.stride(), grad_logabsdet, *grad_logabsdet.stride(),
        grad_x, grad_params, *grad_params.stride(),
        **_constants(x, params, *arguments),
    )  # fmt: skip
    return grad_x, grad_params


_library = _triton.register("affine_coupling", ARGUMENTS, _launch_forward, _launch_backward)


def _tile(name, x, params):
    """(rows, features) of a tile and its warps: by default 4 elements per thread.

    That is one 16-byte access per float32 tensor, so that the 2048 threads that a multiprocessor
    holds have 96 KiB in flight.
    """
    kernel = f"{name} {_triton.compute_type(x, params)}"
    elements, warps = _launch_parameters.tuned(kernel, x, (512, 4))
    return *_triton.tile(params.shape[1], elements, narrowest=elements), warps


def _constants(x, params, inverse, scale_first, kind, a, b, prefactor, shift_prefactor):
    shift = int(scale_first and kind != scale_map.ADDITIVE)  # additive: params holds the shift alone
    return dict(
        INVERSE=inverse, SHIFT=shift, RAW=1 - shift, KIND=kind, A=a, B=b,
        PREFACTOR=prefactor, SHIFT_PREFACTOR=shift_prefactor,
        COMPUTE=_triton.compute_type(x, params),
    )  # fmt: skip


@triton.jit
def log_scale(v, KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """log s(v) and its derivative, for each kind of scale_map.py."""
    value, slope = v, tl.full(v.shape, 1.0, v.dtype)
    if KIND == SOFTCLIP:
        slope = 1 / (1 + tl.abs(v) / A)
        value, slope = v * slope, slope * slope
    elif KIND == TANH:
        power = tl.exp(-2 * tl.abs(v))
        value, slope = A * _triton.tanh(v), A * (4 * power / ((1 + power) * (1 + power)))
    elif KIND == ATAN:
        value, slope = A * _triton.atan(v), A / (1 + v * v)
    elif KIND == SIGMOID or KIND == RECIPROCAL_SIGMOID:  # noqa: SIM109 (Triton has no `in`)
        scale, rest = _triton.sigmoid(v + A), _triton.sigmoid(-v - A)
        value, slope = tl.log(scale + B), scale * rest / (scale + B)
        if B == 0:  # finite where the sigmoid underflows
            value, slope = tl.minimum(v + A, 0.0) - _triton.log1p(tl.exp(-tl.abs(v + A))), rest
        if KIND == RECIPROCAL_SIGMOID:
            value, slope = -value, -slope
    elif KIND == SOFTPLUS:
        scale = _triton.softplus(v + A) + B
        value, slope = tl.log(scale), _triton.sigmoid(v + A) / scale
        if B == 0:  # softplus z = e·(1 − e/2 + …) with e = exp z underflows before its logarithm does
            half, tiny = tl.exp(v + A) / 2, v + A < -20
            value, slope = tl.where(tiny, v + A - half, value), tl.where(tiny, 1 - half, slope)
    else:
        tl.static_assert(KIND == EXP, "a scale map without a formula")
    return value, slope


@triton.jit
def transform(
    z, shift, raw, INVERSE: tl.constexpr, KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    PREFACTOR: tl.constexpr, SHIFT_PREFACTOR: tl.constexpr,
):  # fmt: skip
    """The result and its log-det of each element z (additive: raw is not looked at)."""
    shift, value = SHIFT_PREFACTOR * shift, tl.zeros(z.shape, z.dtype)
    if KIND != ADDITIVE:
        value, _ = log_scale(PREFACTOR * raw, KIND, A, B)
    if INVERSE:
        value = -value
        z = (z - shift) * tl.exp(value)
    else:
        z = tl.exp(value) * z + shift
    return z, value


@triton.jit
def transform_vjp(
    z, shift, raw, gy, gl, INVERSE: tl.constexpr, KIND: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, PREFACTOR: tl.constexpr, SHIFT_PREFACTOR: tl.constexpr,
):  # fmt: skip
    """Cotangents of z, shift and raw from those of the result and of the log-det."""
    value, slope = tl.zeros(z.shape, z.dtype), 0.0
    if KIND != ADDITIVE:
        value, slope = log_scale(PREFACTOR * raw, KIND, A, B)
    if INVERSE:
        value, slope, z = -value, -slope, z - SHIFT_PREFACTOR * shift
    scale = tl.exp(value)
    g, grad_shift = gy * scale, SHIFT_PREFACTOR * gy
    if INVERSE:
        grad_shift = -SHIFT_PREFACTOR * g
    # In this order no product is larger than its result, save where y or the cotangent of z is too large.
    return g, grad_shift, (gy * slope * (scale * z) + gl * slope) * PREFACTOR


# Moves per transformed element, in float32: reads x, shift and raw scale, writes y: 16 bytes
# (additive: 12); per untouched element: reads x, writes y: 8 bytes; per row: 4 bytes.
@triton.jit(do_not_specialize=["N"])
def _forward_kernel(
    N, D, T, x, x_n, x_d, params, p_n, p_t, p_k, index, y, logabsdet,
    INVERSE: tl.constexpr, SHIFT: tl.constexpr, RAW: tl.constexpr, KIND: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, PREFACTOR: tl.constexpr, SHIFT_PREFACTOR: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    if index is not None:
        _triton.copy_rows(x, x_n, x_d, y, rows, N, D, BLOCK_D)
    n = rows[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_T), COMPUTE)
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)[None, :].to(tl.int64)
        here = (n < N) & (t < T)
        d, found = _triton.feature(index, t, here, D)
        z = tl.load(x + n * x_n + d * x_d, mask=found, other=0.0).to(COMPUTE)
        of_t = params + n * p_n + t * p_t
        shift, raw = tl.load(of_t + SHIFT * p_k, mask=here, other=0.0).to(COMPUTE), 0.0
        if KIND != ADDITIVE:
            raw = tl.load(of_t + RAW * p_k, mask=here, other=0.0).to(COMPUTE)
        z, value = transform(z, shift, raw, INVERSE, KIND, A, B, PREFACTOR, SHIFT_PREFACTOR)
        tl.store(y + n * D + d, z, mask=found)
        total += tl.where(here, tl.where(found, value, float("nan")), 0.0)
    tl.store(logabsdet + rows, tl.sum(total, 1), mask=rows < N)


# Moves per transformed element, in float32: reads x, grad_y and raw scale (the inverse: and shift),
# writes grad_x and two gradients of parameters: 24 bytes (inverse: 28); per untouched element:
# reads grad_y, writes grad_x: 8 bytes; per row: 4 bytes.
@triton.jit(do_not_specialize=["N"])
def _backward_kernel(
    N, D, T, x, x_n, x_d, params, p_n, p_t, p_k, index, grad_y, gy_n, gy_d, grad_logabsdet, gl_n,
    grad_x, grad_params, gp_n, gp_t, gp_k,
    INVERSE: tl.constexpr, SHIFT: tl.constexpr, RAW: tl.constexpr, KIND: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, PREFACTOR: tl.constexpr, SHIFT_PREFACTOR: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    if index is not None:
        _triton.copy_rows(grad_y, gy_n, gy_d, grad_x, rows, N, D, BLOCK_D)
    n = rows[:, None]
    gl = tl.load(grad_logabsdet + n * gl_n, mask=n < N, other=0.0).to(COMPUTE)
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)[None, :].to(tl.int64)
        here = (n < N) & (t < T)
        d, found = _triton.feature(index, t, here, D)
        z = tl.load(x + n * x_n + d * x_d, mask=found, other=0.0).to(COMPUTE)
        gy = tl.load(grad_y + n * gy_n + d * gy_d, mask=found, other=0.0).to(COMPUTE)
        of_t, to_t = params + n * p_n + t * p_t, grad_params + n * gp_n + t * gp_t
        shift, raw = 0.0, 0.0
        if INVERSE and KIND != ADDITIVE:
            shift = tl.load(of_t + SHIFT * p_k, mask=here, other=0.0).to(COMPUTE)
        if KIND != ADDITIVE:
            raw = tl.load(of_t + RAW * p_k, mask=here, other=0.0).to(COMPUTE)
        g, grad_shift, grad_raw = transform_vjp(z, shift, raw, gy, gl, INVERSE, KIND, A, B, PREFACTOR, SHIFT_PREFACTOR)
        tl.store(grad_x + n * D + d, g, mask=found)
        tl.store(to_t + SHIFT * gp_k, grad_shift, mask=here)
        if KIND != ADDITIVE:
            tl.store(to_t + RAW * gp_k, grad_raw, mask=here)

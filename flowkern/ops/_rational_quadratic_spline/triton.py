"""The rational-quadratic spline in Triton: one kernel for both directions, one for their backward.

A program owns BLOCK_N whole rows and walks over their features in blocks, so that the log-det is
summed in one fixed order, without atomics. What it does to an element is in triton_element.py.
"""

import torch
import triton
import triton.language as tl

from flowkern.ops import _launch_parameters, _triton
from flowkern.ops._rational_quadratic_spline.native import ARGUMENTS
from flowkern.ops._rational_quadratic_spline.triton_element import spec_of, transform, transform_vjp


def forward(x, params, *arguments):
    """y (N, D), logabsdet (N,); arguments as `reference.forward` takes them."""
    return torch.ops.flowkern_triton.rational_quadratic_spline(x, params, *arguments)


def backward(grad_y, grad_logabsdet, x, params, *arguments):
    """grad_x (N, D) and grad_params (N, T, M), laid out as params is."""
    return torch.ops.flowkern_triton.rational_quadratic_spline_backward(grad_y, grad_logabsdet, x, params, *arguments)


def _launch_forward(x, params, index, bound, *arguments):
    _triton.check(x, params, index)
    y, logabsdet = _triton.new_outputs(x, params)
    spec = _spec(x, params, *arguments)
    _triton.launch(
        _forward_kernel, x, _tile("rational_quadratic_spline", x, params, spec),
        params.shape[1], x, *x.stride(), params, *params.stride(),
        _triton.contiguous(index), _triton.contiguous(bound), y, logabsdet, SPEC=spec,
    )  # fmt: skip
    return y, logabsdet


def _launch_backward(grad_y, grad_logabsdet, x, params, index, bound, *arguments):
    _triton.check(x, params, index)
    grad_x, grad_params = _triton.new_grads(x, params)
    spec = _spec(x, params, *arguments)
    _triton.launch(
        _backward_kernel, x, _tile("rational_quadratic_spline_backward", x, params, spec),
        params.shape[1], x, *x.stride(), params, *params.stride(),
        _triton.contiguous(index), _triton.contiguous(bound),
        grad_y, *grad_y.stride(), grad_logabsdet, *grad_logabsdet.stride(),
        grad_x, grad_params, *grad_params.stride(), SPEC=spec,
    )  # fmt: skip
    return grad_x, grad_params


_library = _triton.register("rational_quadratic_spline", ARGUMENTS, _launch_forward, _launch_backward)


def _spec(x, params, *arguments):
    return spec_of(params.shape[2], _triton.compute_type(x, params), *arguments)


def _tile(name, x, params, spec):
    """(rows, features) of a tile and its warps.

    By default an element per thread, up to 32 bins in float32. Beyond, threads share an element,
    and a single warp keeps their exchange within itself.
    """
    few = spec.block_bins * spec.compute.primitive_bitwidth <= 1024
    default = (128, 4) if few else (max(512 // spec.block_bins, 1), 1)
    kernel = f"{name} {spec.compute} K<={spec.block_bins}"
    elements, warps = _launch_parameters.tuned(kernel, x, default)
    return *_triton.tile(params.shape[1], elements, narrowest=8 if few else elements), warps


# Moves per transformed element, in float32: reads x and M = 3K − 1 (3K, 3K + 1) raw parameters,
# writes y: 4M + 8 bytes (K = 8: 100); per untouched element: reads x, writes y: 8; per row: 4.
@triton.jit(do_not_specialize=["N", "p_t", "p_k"])
def _forward_kernel(
    N, D, T, x, x_n, x_d, params, p_n, p_t, p_k, index, bound, y, logabsdet,
    SPEC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_N)
    if index is not None:
        _triton.copy_rows(x, x_n, x_d, y, rows, N, D, BLOCK_D)
    element = tl.arange(0, BLOCK_N * BLOCK_T)
    n = row + element // BLOCK_T
    total = tl.zeros((BLOCK_N * BLOCK_T,), SPEC.compute)
    for t0 in range(0, T, BLOCK_T):
        t = t0 + (element % BLOCK_T).to(tl.int64)
        here = (n < N) & (t < T)
        d, found = _triton.feature(index, t, here, D)
        z = tl.load(x + n * x_n + d * x_d, mask=found, other=0.0).to(SPEC.compute)
        of_t = params + n * p_n + t * p_t
        value, log_slope = transform(z, of_t, p_k, t, here, bound, SPEC)
        tl.store(y + n * D + d, value, mask=found)
        total += tl.where(here, tl.where(found, log_slope, float("nan")), 0.0)
    total = tl.sum(tl.reshape(total, (BLOCK_N, BLOCK_T)), 1)
    tl.store(logabsdet + rows, total, mask=rows < N)


# Moves per transformed element, in float32: reads x, grad_y and M = 3K − 1 (3K, 3K + 1) raw
# parameters, writes grad_x and M gradients: 8M + 12 bytes (K = 8: 196); per untouched element:
# reads grad_y, writes grad_x: 8; per row: 4.
@triton.jit(do_not_specialize=["N", "p_t", "p_k"])
def _backward_kernel(
    N, D, T, x, x_n, x_d, params, p_n, p_t, p_k, index, bound,
    grad_y, gy_n, gy_d, grad_logabsdet, gl_n, grad_x, grad_params, gp_n, gp_t, gp_k,
    SPEC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_N
    if index is not None:
        _triton.copy_rows(grad_y, gy_n, gy_d, grad_x, row + tl.arange(0, BLOCK_N), N, D, BLOCK_D)
    element = tl.arange(0, BLOCK_N * BLOCK_T)
    n = row + element // BLOCK_T
    gl = tl.load(grad_logabsdet + n * gl_n, mask=n < N, other=0.0).to(SPEC.compute)
    for t0 in range(0, T, BLOCK_T):
        t = t0 + (element % BLOCK_T).to(tl.int64)
        here = (n < N) & (t < T)
        d, found = _triton.feature(index, t, here, D)
        z = tl.load(x + n * x_n + d * x_d, mask=found, other=0.0).to(SPEC.compute)
        gy = tl.load(grad_y + n * gy_n + d * gy_d, mask=found, other=0.0).to(SPEC.compute)
        of_t = params + n * p_n + t * p_t
        to_t = grad_params + n * gp_n + t * gp_t
        gz = transform_vjp(z, gy, gl, of_t, p_k, to_t, gp_k, t, here, bound, SPEC)
        tl.store(grad_x + n * D + d, gz, mask=found)

"""Runge-Kutta stages in Triton: an element per lane for the stage, whole rows for the error."""

import torch
import triton
import triton.language as tl

from flowkern.ops._dispatcher import define
from flowkern.ops._runge_kutta_stage import native

_MOST_STAGES = 8  # and pointers k0 … k7 that the kernels take
_ELEMENTS = 1024  # of a program


def forward(y, weights, *k):
    """y + Σ_j w_j k_j."""
    return native.forward(y, weights, *k, ops=torch.ops.flowkern_triton)


def error(y0, y1, weights, rtol, atol, *k):
    """Squares of the scaled error, summed over each row."""
    return native.error(y0, y1, weights, rtol, atol, *k, ops=torch.ops.flowkern_triton)


def _launch_stage(y, k, weights):
    out = torch.empty_like(y)
    if y.numel():
        blocks = triton.cdiv(y.numel(), _ELEMENTS)
        _launch(_stage_kernel, blocks, y, k, weights, y, out, BLOCK=_ELEMENTS)
    return out


def _launch_error(y0, y1, k, weights, rtol, atol):
    sums = y0.new_zeros(y0.shape[:1] or (1,))
    if y0.numel():
        width = y0.numel() // len(sums)
        block_d = min(triton.next_power_of_2(width), _ELEMENTS)
        block_n = _ELEMENTS // block_d
        _launch(
            _error_kernel, triton.cdiv(len(sums), block_n), y0, k, weights, y0, y1, sums,
            RTOL=rtol, ATOL=atol, BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip
    return sums


def _launch(kernel, blocks, y, k, weights, *tensors, **constants):
    """Run `kernel` on y's device, after checks: a kernel reads all of these as it reads y."""
    _check(y, (*k, *tensors[:-1]), weights, len(k))
    rows = y.shape[0] if y.dim() else 1
    pointers = (*k, *k[:1] * (_MOST_STAGES - len(k)))
    strides = weights.stride() if weights.dim() == 2 else (0, *weights.stride())
    with torch.cuda.device_of(y):
        kernel[(blocks,)](
            rows, y.numel() // rows, *pointers, weights, *strides, *tensors,
            STAGES=len(k), **constants, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _check(y, others, weights, stages):
    if not 1 <= stages <= _MOST_STAGES:
        raise ValueError(f"k: expected 1 to {_MOST_STAGES} tensors, got {stages}")
    for other in others:
        if (other.shape, other.dtype) != (y.shape, y.dtype) or not other.is_contiguous():
            got = f"{other.dtype} {tuple(other.shape)}"
            raise ValueError(f"k: expected contiguous {y.dtype} {tuple(y.shape)} as y has, got {got}")
    if weights.shape not in ((stages,), (*y.shape[:1], stages)) or weights.dtype != y.dtype:
        got = f"{weights.dtype} {tuple(weights.shape)}"
        raise ValueError(f"weights: expected {y.dtype} (s,) or (N, s) for {stages} stages, got {got}")


@triton.jit
def _combination(
    k0, k1, k2, k3, k4, k5, k6, k7, weights, w_n, w_j, n, rows, at, here, STAGES: tl.constexpr
):  # fmt: skip
    """Σ_j w_nj k_j of the elements at `at`, which belong to rows n; `rows` and `here` are there."""
    w = weights + n * w_n
    total = tl.load(w, mask=rows, other=0.0) * tl.load(k0 + at, mask=here, other=0.0)
    if STAGES > 1:
        total += tl.load(w + w_j, mask=rows, other=0.0) * tl.load(k1 + at, mask=here, other=0.0)
    if STAGES > 2:
        total += tl.load(w + 2 * w_j, mask=rows, other=0.0) * tl.load(k2 + at, mask=here, other=0.0)
    if STAGES > 3:
        total += tl.load(w + 3 * w_j, mask=rows, other=0.0) * tl.load(k3 + at, mask=here, other=0.0)
    if STAGES > 4:
        total += tl.load(w + 4 * w_j, mask=rows, other=0.0) * tl.load(k4 + at, mask=here, other=0.0)
    if STAGES > 5:
        total += tl.load(w + 5 * w_j, mask=rows, other=0.0) * tl.load(k5 + at, mask=here, other=0.0)
    if STAGES > 6:
        total += tl.load(w + 6 * w_j, mask=rows, other=0.0) * tl.load(k6 + at, mask=here, other=0.0)
    if STAGES > 7:
        total += tl.load(w + 7 * w_j, mask=rows, other=0.0) * tl.load(k7 + at, mask=here, other=0.0)
    return total


# Moves per element, in float32: reads y and s tensors k, writes the state: 4·(s + 2) bytes.
@triton.jit(do_not_specialize=["N"])
def _stage_kernel(
    N, D, k0, k1, k2, k3, k4, k5, k6, k7, weights, w_n, w_j, y, out,
    STAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < N.to(tl.int64) * D
    total = _combination(
        k0, k1, k2, k3, k4, k5, k6, k7, weights, w_n, w_j, at // D, here, at, here, STAGES
    )  # fmt: skip
    tl.store(out + at, tl.load(y + at, mask=here, other=0.0) + total, mask=here)


# Moves per element, in float32: reads y0, y1 and s tensors k: 4·(s + 2) bytes; per row 4 bytes.
@triton.jit(do_not_specialize=["N"])
def _error_kernel(
    N, D, k0, k1, k2, k3, k4, k5, k6, k7, weights, w_n, w_j, y0, y1, sums,
    STAGES: tl.constexpr, RTOL: tl.constexpr, ATOL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = rows[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_D), sums.dtype.element_ty)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)[None, :]
        here, at = (n < N) & (d < D), n * D + d
        error = _combination(
            k0, k1, k2, k3, k4, k5, k6, k7, weights, w_n, w_j, n, n < N, at, here, STAGES
        )  # fmt: skip
        before = tl.load(y0 + at, mask=here, other=0.0)
        after = tl.load(y1 + at, mask=here, other=0.0)
        tolerance = ATOL + RTOL * tl.maximum(tl.abs(before), tl.abs(after))
        scaled = error / tolerance + (after - after)  # NaN where y1 is not finite
        total += tl.where(here, scaled * scaled, 0.0)
    tl.store(sums + rows, tl.sum(total, 1), mask=rows < N)


_library = define("flowkern_triton", native.OPS)
_library.impl("runge_kutta_stage", _launch_stage, "CompositeExplicitAutograd")
_library.impl("runge_kutta_error", _launch_error, "CompositeExplicitAutograd")

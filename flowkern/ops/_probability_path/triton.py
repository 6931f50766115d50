"""The probability path in Triton: a thread makes the four elements whose noise is of one counter."""

import torch
import triton
import triton.language as tl

from flowkern.ops import _triton_random as random
from flowkern.ops._dispatcher import define
from flowkern.ops._probability_path import kinds, native

_COUNTERS = 256  # of a program
TARGET, VARIANCE_PRESERVING = tl.constexpr(kinds.TARGET), tl.constexpr(kinds.VARIANCE_PRESERVING)
SCHROEDINGER_BRIDGE = tl.constexpr(kinds.SCHROEDINGER_BRIDGE)


def forward(x0, x1, t, noise, seed, path, sigma):
    """x_t and u_t (N, D), and the t (N,) that were drawn."""
    return torch.ops.flowkern_triton.probability_path(x0, x1, t, noise, seed, path, sigma)


def backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma):
    """grad_x0 and grad_x1 (N, D), and grad_t (N,) if of_t."""
    grad_x0, grad_x1, parts = torch.ops.flowkern_triton.probability_path_backward(
        grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma
    )
    return grad_x0, grad_x1, parts.sum(-1) if of_t else None


def _launch_forward(x0, x1, t, noise, seed, path, sigma):
    x_t, u_t, drawn = native.new_outputs(x0, t)
    _launch(_forward_kernel, (x0, x1, t, noise, seed, x_t, u_t, drawn), path, sigma)
    return x_t, u_t, drawn


def _launch_backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma):
    grad_x0, grad_x1, parts = native.new_grads(x0, of_t)
    tensors = x0, x1, t, noise, seed, grad_x, grad_u, grad_x0, grad_x1, parts if of_t else None
    _launch(_backward_kernel, tensors, path, sigma)
    return grad_x0, grad_x1, parts


def _launch(kernel, tensors, path, sigma):
    x0 = tensors[0]
    programs = triton.cdiv(x0.numel(), 4 * _COUNTERS)
    if programs == 0:
        return
    with torch.cuda.device_of(x0):
        kernel[(programs,)](
            x0.numel(), x0.shape[1], *tensors, KIND=path, SIGMA=sigma,
            WIDE=x0.numel() + 4 * _COUNTERS >= 2**31, COUNTERS=_COUNTERS,
            COMPUTE=tl.float64 if x0.dtype == torch.float64 else tl.float32,
            num_warps=4, enable_fp_fusion=True,  # Triton's default is about to become False
        )  # fmt: skip


_library = define("flowkern_triton", native.OPS)
_library.impl("probability_path", _launch_forward, "CompositeExplicitAutograd")
_library.impl("probability_path_backward", _launch_backward, "CompositeExplicitAutograd")


@triton.jit
def _path_at(t, KIND: tl.constexpr, SIGMA: tl.constexpr):
    """The weights of x0, x1 and noise in x_t, and in u_t."""
    zero, one = tl.full(t.shape, 0.0, t.dtype), tl.full(t.shape, 1.0, t.dtype)
    x_a, x_b, x_z = 1 - t, t, tl.full(t.shape, SIGMA, t.dtype)
    u_a, u_b, u_z = -one, one, zero
    if KIND == TARGET:
        x_a, x_z = zero, 1 - (1 - SIGMA) * t
        u_a, u_z = zero, tl.full(t.shape, SIGMA - 1, t.dtype)
    elif KIND == VARIANCE_PRESERVING:
        rate: tl.constexpr = 1.5707963267948966
        x_b, x_a = random.sincos_turns(0.25 * t)
        u_a, u_b = -rate * x_b, rate * x_a
    elif KIND == SCHROEDINGER_BRIDGE:
        q = t * (1 - t)
        root = tl.sqrt(q)
        x_z = SIGMA * root
        u_z = x_z * (1 - 2 * t) / (2 * q + 1e-8)
    return x_a, x_b, x_z, u_a, u_b, u_z


@triton.jit
def _slopes(t, u_a, u_b, u_z, KIND: tl.constexpr, SIGMA: tl.constexpr):
    """dx_t/dt's weight of the noise, and the weights in du_t/dt."""
    zero = tl.full(t.shape, 0.0, t.dtype)
    x_z, s_a, s_b, s_z = u_z, zero, zero, zero
    if KIND == VARIANCE_PRESERVING:
        rate: tl.constexpr = 1.5707963267948966
        s_a, s_b = -rate * u_b, rate * u_a
    elif KIND == SCHROEDINGER_BRIDGE:
        q, r = t * (1 - t), 1 - 2 * t
        root, above = tl.sqrt(q), 2 * q + 1e-8
        half = r / (2 * root)
        x_z = SIGMA * half
        s_z = SIGMA * (half * r - 2 * root - 2 * r * (root * r / above)) / above
    return x_z, s_a, s_b, s_z


@triton.jit
def _elements(total, D, COUNTERS: tl.constexpr, WIDE: tl.constexpr):
    """The counters of a program, and the first of the four elements of each."""
    counter = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)
    first = (counter >> 5 << 7) + (counter & 31)
    return counter, first if WIDE else first.to(tl.int32)  # 32-bit divisions are cheap


@triton.jit
def _noises(noise, seed, counter, KIND: tl.constexpr, SIGMA: tl.constexpr, COMPUTE: tl.constexpr):
    """The noise of the four elements of each counter, where it is drawn."""
    if noise is None and (SIGMA != 0 or KIND == TARGET):
        return random.normal(seed, 0, counter, COMPUTE)
    zero = tl.zeros(counter.shape, COMPUTE)
    return zero, zero, zero, zero


# Moves per element, in float32: reads x0 and x1, writes x_t and u_t: 16 bytes (target: 12).
@triton.jit(do_not_specialize=["total"])
def _forward_kernel(
    total, D, x0, x1, t, noise, seed, x_t, u_t, drawn, KIND: tl.constexpr, SIGMA: tl.constexpr,
    WIDE: tl.constexpr, COUNTERS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    counter, first = _elements(total, D, COUNTERS, WIDE)
    key = tl.load(seed)
    noises = _noises(noise, key, counter, KIND, SIGMA, COMPUTE)
    for j in tl.static_range(4):
        e = first + 32 * j
        here, n = e < total, e // D
        if t is None:
            time = random.uniform_at(key, 1, n.to(tl.int64), COMPUTE)
            tl.store(drawn + n, time, mask=here & (e == n * D))
        else:
            time = tl.load(t + n, mask=here, other=0.0)
        z = noises[j]
        if noise is not None:
            z = tl.load(noise + e, mask=here, other=0.0)
        a, b = 0.0, tl.load(x1 + e, mask=here, other=0.0)
        if KIND != 1:
            a = tl.load(x0 + e, mask=here, other=0.0)
        x_a, x_b, x_z, u_a, u_b, u_z = _path_at(time, KIND, SIGMA)
        tl.store(x_t + e, x_a * a + x_b * b + x_z * z, mask=here)
        tl.store(u_t + e, u_a * a + u_b * b + u_z * z, mask=here)


# Moves per element, in float32: reads two cotangents, x0 and x1, writes three gradients: 28 bytes.
@triton.jit(do_not_specialize=["total"])
def _backward_kernel(
    total, D, x0, x1, t, noise, seed, grad_x, grad_u, grad_x0, grad_x1, parts,
    KIND: tl.constexpr, SIGMA: tl.constexpr, WIDE: tl.constexpr, COUNTERS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    counter, first = _elements(total, D, COUNTERS, WIDE)
    noises = _noises(noise, tl.load(seed), counter, KIND, SIGMA, COMPUTE)
    for j in tl.static_range(4):
        e = first + 32 * j
        here, n = e < total, e // D
        time = tl.load(t + n, mask=here, other=0.0)
        g_x = tl.load(grad_x + e, mask=here, other=0.0)
        g_u = tl.load(grad_u + e, mask=here, other=0.0)
        x_a, x_b, _, u_a, u_b, u_z = _path_at(time, KIND, SIGMA)
        tl.store(grad_x0 + e, x_a * g_x + u_a * g_u, mask=here)
        tl.store(grad_x1 + e, x_b * g_x + u_b * g_u, mask=here)
        if parts is not None:
            z = noises[j]
            if noise is not None:
                z = tl.load(noise + e, mask=here, other=0.0)
            a, b = tl.load(x0 + e, mask=here, other=0.0), tl.load(x1 + e, mask=here, other=0.0)
            x_z, s_a, s_b, s_z = _slopes(time, u_a, u_b, u_z, KIND, SIGMA)
            of_x, of_u = u_a * a + u_b * b + x_z * z, s_a * a + s_b * b + s_z * z
            tl.store(parts + e, g_x * of_x + g_u * of_u, mask=here)

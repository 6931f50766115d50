"""What the Triton kernels of the coupling ops share: registration, block sizes, device functions.

The kernels take any strides, so nothing is copied beforehand. Triton compiles one binary per
number of bins, kind of map and set of constants, and none per batch size.
"""

import torch
import triton
import triton.language as tl

from flowkern.ops._arguments import compute_dtype


def register(name, arguments, forward, backward):
    """Make two launchers dispatcher ops flowkern_triton::name and …_backward.

    torch.compile takes each for one opaque call.

    Args:
        name: name of the forward op.
        arguments: schema of the arguments that both take, from x on.

    Returns:
        The library that owns the ops: they live as long as it does.
    """
    library = torch.library.Library("flowkern_triton", "FRAGMENT")
    cotangents = "Tensor grad_y, Tensor grad_logabsdet, "
    for op, first, function, fake in (
        (name, "", forward, _fake_forward),
        (f"{name}_backward", cotangents, backward, _fake_backward),
    ):
        library.define(f"{op}({first}{arguments}) -> (Tensor, Tensor)")
        library.impl(op, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"flowkern_triton::{op}", fake, lib=library)
    return library


def _fake_forward(x, params, *arguments):
    return new_outputs(x, params)


def _fake_backward(grad_y, grad_logabsdet, x, params, *arguments):
    return new_grads(x, params)


def new_outputs(x, params):
    """Memory for y (N, D) and logabsdet (N,)."""
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=compute_dtype(x, params))


def new_grads(x, params):
    """Memory for grad_x (N, D) and for grad_params, laid out as params where params is dense."""
    expanded = any(stride == 0 for stride in params.stride())
    layout = torch.contiguous_format if expanded else torch.preserve_format
    return x.new_empty(x.shape), torch.empty_like(params, memory_format=layout)


def check(x, params, index):
    """Raise an error that names the argument unless a kernel can read these together.

    The ops have checked their arguments; this guards those who call the dispatcher ops themselves.
    """
    if x.dim() != 2:
        raise ValueError(f"x: expected shape (N, D), got {tuple(x.shape)}")
    if params.dim() != 3 or params.shape[0] != x.shape[0]:
        raise ValueError(f"params: expected shape ({x.shape[0]}, T, P), got {tuple(params.shape)}")
    features = params.shape[1]
    if index is None and features != x.shape[1]:
        raise ValueError(f"index: needed, as params has {features} of x's {x.shape[1]} features")
    if index is not None and (index.dtype, index.shape) != (torch.int64, (features,)):
        got = f"{index.dtype} {tuple(index.shape)}"
        raise ValueError(f"index: expected int64 of shape ({features},), got {got}")


def launch(kernel, x, tile, *arguments, **constants):
    """Run `kernel` on x's device, once per block of rows of x (N, D).

    Args:
        tile: rows and features of a block, and the warps that work on it.
        arguments: those of the kernel after N and D, index and bound among them contiguous.
    """
    rows, features, warps = tile
    blocks = triton.cdiv(x.shape[0], rows)
    if blocks == 0:
        return
    with torch.cuda.device_of(x):
        kernel[(blocks,)](
            x.shape[0], x.shape[1], *arguments, **constants, BLOCK_N=rows, BLOCK_T=features,
            BLOCK_D=min(triton.next_power_of_2(max(x.shape[1], 1)), max(256 * warps // rows, 1)),
            num_warps=warps, enable_fp_fusion=True,  # Triton's default is about to become False
        )  # fmt: skip


def unpipelined(registers):
    """Launch options of a kernel whose threads hand values on to each other in global memory.

    Pipelined loads would run ahead of the barriers in between, and gain little. registers: the most of a thread; left
    to itself, the assembler keeps room for more blocks, and moves values to memory.
    """
    return {"num_stages": 1} | ({} if torch.version.hip else {"maxnreg": registers})


def contiguous(tensor):
    """index or bound, which are short, without gaps."""
    return None if tensor is None else tensor.contiguous()


def compute_type(x, params):
    """The Triton dtype that the kernel computes in."""
    return tl.float64 if compute_dtype(x, params) == torch.float64 else tl.float32


def tile(features, elements, narrowest):
    """(rows, features) of a tile of `elements`, powers of two, few of them idle.

    Rows of T features are covered by blocks as wide as they are, up to `elements`, or narrower
    (down to `narrowest`) as long as more than an eighth of the lanes would be idle.
    """
    width = min(triton.next_power_of_2(max(features, 1)), elements)
    while width > narrowest and -features % width > features / 8:
        width //= 2
    return elements // width, width


@triton.jit
def copy_rows(source, source_n, source_d, target, n, N, D, BLOCK_D: tl.constexpr):
    """target[n] = source[n] for a contiguous target (N, D), done before any later store."""
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = (n < N)[:, None] & (d < D)[None, :]
        values = tl.load(source + n[:, None] * source_n + d[None, :] * source_d, mask=mask)
        tl.store(target + n[:, None] * D + d[None, :], values, mask=mask)
    # The transformed features are written over the copy by other threads of this block.
    tl.debug_barrier()


@triton.jit
def feature(index, t, used, D):
    """The feature that the t-th parameters transform, and whether it may be read."""
    if index is None:
        d = t.to(tl.int64)
    else:
        d = tl.load(index + t, mask=used, other=0)
    return d, used & (d >= 0) & (d < D)


@triton.jit
def clamp(value, low, high):
    """Into [low, high]; NaN stays."""
    return tl.where(value < low, low, tl.where(value > high, high, value))


@triton.jit
def unit(value):
    """Into [0, 1], where rounding may have left it; NaN stays."""
    return clamp(value, 0.0, 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, right for small x: the rounding error of 1 + x is divided out."""
    sum_ = 1 + x
    return tl.where(sum_ == 1, x, tl.log(sum_) * (x / tl.where(sum_ == 1, 1.0, sum_ - 1)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp −x)."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp x); its derivative is the sigmoid."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def tanh(x):
    """(1 − p)/(1 + p) with p = exp(−2|x|), by 1 − p without its rounding error where that counts."""
    z = -2 * tl.abs(x)
    power = tl.exp(z)
    small = z > -1
    m = (power - 1) * (z / tl.log(tl.where(small & (power != 1), power, 0.5)))
    m = tl.where(power == 1, z, m)
    ratio = tl.where(small, -m, 2 * power) / tl.where(small, 2 + m, 1 + power)
    magnitude = tl.where(small, ratio, 1 - ratio)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def atan(x):
    """A rational approximation to double precision (Cephes), once reduced to |z| < 0.66."""
    magnitude = tl.abs(x)
    large, middle = magnitude > 2.414213562373095, magnitude > 0.66
    top = tl.where(large, -1.0, tl.where(middle, magnitude - 1, magnitude))
    z = top / tl.where(large, magnitude, tl.where(middle, magnitude + 1, 1.0))
    q = z * z
    above = -8.750608600031904122785e-1 * q - 1.615753718733365076637e1
    above = (above * q - 7.500855792314704667340e1) * q - 1.228866684490136173410e2
    above = above * q - 6.485021904942025371773e1
    below = (q + 2.485846490142306297962e1) * q + 1.650270098316988542046e2
    below = (below * q + 4.328810604912902668951e2) * q + 4.853903996359136964868e2
    below = below * q + 1.945506571482613964425e2
    angle = z + z * (q * above / below)
    angle = tl.where(large, angle + 1.5707963267948966, angle)
    angle = tl.where(middle & (magnitude <= 2.414213562373095), angle + 0.7853981633974483, angle)
    return tl.where(x < 0, -angle, angle)

"""Random numbers for Triton kernels: the same as those of _random.py and csrc/common/philox.h."""

import triton
import triton.language as tl


@triton.jit
def words(seed, STREAM: tl.constexpr, counter):
    """The four outputs of each counter (int64) of a stream, in uint32."""
    low, zero = counter.to(tl.uint32), tl.zeros(counter.shape, tl.uint32)
    return tl.philox(seed, low, (counter >> 32).to(tl.uint32), zero + STREAM, zero)


@triton.jit
def uniform(word, COMPUTE: tl.constexpr):
    """(2k + 1)/2²⁴ with k the upper 23 bits."""
    return (word >> 9).to(COMPUTE) * 1.1920928955078125e-07 + 5.9604644775390625e-08


@triton.jit
def uniform_at(seed, STREAM: tl.constexpr, place, COMPUTE: tl.constexpr):
    """The uniform numbers at the places (int64) of a stream: word 128b + 32j + i is that of output j."""
    a, b, c, d = words(seed, STREAM, (place >> 7 << 5) + (place & 31))
    output = place >> 5 & 3
    word = tl.where(output < 2, tl.where(output == 0, a, b), tl.where(output == 2, c, d))
    return uniform(word, COMPUTE)


@triton.jit
def normal(seed, STREAM: tl.constexpr, counter, COMPUTE: tl.constexpr):
    """The four normal numbers of each counter of a stream."""
    a, b, c, d = words(seed, STREAM, counter)
    first, second = _box_muller(uniform(a, COMPUTE), uniform(b, COMPUTE))
    third, fourth = _box_muller(uniform(c, COMPUTE), uniform(d, COMPUTE))
    return first, second, third, fourth


@triton.jit
def _box_muller(u, v):
    radius = tl.sqrt(-2.0 * tl.log(u))
    sine, cosine = sincos_turns(v)
    return radius * cosine, radius * sine


@triton.jit
def sincos_turns(u):
    """sin 2πu and cos 2πu; see csrc/common/sincos.h."""
    v = u - tl.floor(u + 0.5)
    h = tl.abs(v)
    size = _sin_of_quarter_turn(tl.minimum(0.5 - h, h))
    return tl.where(v < 0, -size, size), _sin_of_quarter_turn(0.25 - h)


@triton.jit
def sincos(angle):
    """sin and cos of an angle in radians; see csrc/common/sincos.h."""
    turns = tl.floor(angle * 0.15915494309189535 + 0.5)
    if angle.dtype == tl.float64:
        rest = (angle - turns * 6.283185303211212) - turns * 3.968374318722162e-9
    else:
        rest = (angle - turns * 6.28125) - turns * 1.935307179586477e-3
    return sincos_turns(rest * 0.15915494309189535)


@triton.jit
def _sin_of_quarter_turn(x):
    z = x * x
    if x.dtype == tl.float64:
        p = 0.10089695501646812 * z - 0.7177337921413454
        p = (p * z + 3.8199280942271643) * z - 15.0946416761179
        p = (p * z + 42.058693925428685) * z - 76.70585975282492
        p = (p * z + 81.60524927607362) * z - 41.341702240399755
    else:
        p = (39.7598266602 * z - 76.5811691284) * z + 81.6024780273
        p = p * z - 41.3416824341
    return x * (p * z + 6.283185307179586)

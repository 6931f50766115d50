"""The noise ε of Hutchinson's estimate of a trace, E εᵀAε = Tr A."""

import math

import torch


def noise(kind, shape, seed, like):
    """ε of `shape` with E εεᵀ = 1, in the dtype and on the device of `like`.

    kind: "rademacher" (±1 with equal chances) or "normal".
    seed: None to draw by torch's generator; an integer for the same ε in every call, in every dtype
        and on every device.
    """
    options = {"dtype": like.dtype, "device": like.device}
    if seed is not None:
        words = _words(math.prod(shape), seed, like.device)
        return (_signs(words) if kind == "rademacher" else _normal(words)).to(like.dtype).reshape(shape)
    if kind == "rademacher":
        return _signs(torch.randint(2, shape, device=like.device)).to(like.dtype)
    return torch.randn(shape, **options)


def _signs(words: torch.Tensor) -> torch.Tensor:
    return 2 * (words & 1) - 1


def _normal(words: torch.Tensor) -> torch.Tensor:
    """Box–Muller: of each word, 26 bits for the radius and 26 for the angle."""
    radius = (_shift(words, 38).double() + 0.5) * 2.0**-26
    angle = ((_shift(words, 12) & (2**26 - 1)).double()) * (2 * math.pi * 2.0**-26)
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(angle)


def _words(count: int, seed: int, device: torch.device) -> torch.Tensor:
    """(count,) words of 64 random bits as int64, whose products wrap around.

    Source: Steele, Lea & Flood, Fast splittable pseudorandom number generators (2014), SplitMix64.
    """
    z = torch.arange(1, count + 1, device=device) * _signed(0x9E3779B97F4A7C15) + seed
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The upper 64 − bits bits; >> would fill up with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64)

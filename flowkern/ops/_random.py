"""Philox4x32-10 in plain PyTorch: the same words as csrc/common/philox.h, in int64 arithmetic."""

from collections.abc import Sequence

import torch

_LOW = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
COUNTERS, WORDS = 32, 128  # of a block of a stream


def philox(
    counter: Sequence[torch.Tensor], key: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four words of 32 random bits for each counter.

    Args:
        counter: four int64 tensors that broadcast, with values in [0, 2³²).
        key: two such tensors.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    a, b, c, d = counter
    k, l = key
    for _ in range(10):
        (p_high, p_low), (q_high, q_low) = (_product(m, w) for m, w in zip(_MULTIPLIERS, (a, c)))
        a, b, c, d = q_high ^ b ^ k, q_low, p_high ^ d ^ l, p_low
        k, l = (k + _KEY_STEPS[0]) & _LOW, (l + _KEY_STEPS[1]) & _LOW
    return a, b, c, d


def _product(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper and the lower 32 bits of a product, by halves of the word: none reaches 2⁶³."""
    low, high = multiplier * (word & 0xFFFF), multiplier * (word >> 16)
    total = (low >> 16) + high  # of the bits from the 16th on
    return total >> 16, (total << 16 | low & 0xFFFF) & _LOW


def words(count: int, stream: int, seed: torch.Tensor, block: int = 0) -> torch.Tensor:
    """`count` words of a stream of a seed (int64, no dimension), the first of a block and on, as int64 (count,).

    Word 128b + 32j + i is output j of counter 32b + i.
    """
    blocks = -(-count // WORDS)
    counter = block * COUNTERS + torch.arange(blocks * COUNTERS, device=seed.device).view(blocks, COUNTERS)
    zero = torch.zeros_like(counter)
    key = seed & _LOW, seed >> 32 & _LOW
    outputs = philox((counter & _LOW, counter >> 32, zero + stream, zero), key)
    return torch.stack(outputs, dim=1).flatten()[:count]


def uniform(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(2k + 1)/2²⁴ with k the upper 23 bits: in (0, 1), and exact in float32."""
    return (words >> 9).to(dtype) * 2.0**-23 + 2.0**-24


def normal(count: int, stream: int, seed: torch.Tensor, dtype: torch.dtype, first: int = 0) -> torch.Tensor:
    """`count` normal numbers of a stream, from number `first` on: outputs 0, 1 and 2, 3 of a counter are pairs."""
    block, skipped = first // WORDS, first % WORDS
    uniforms = uniform(words(-(-(skipped + count) // WORDS) * WORDS, stream, seed, block), torch.float64)
    u, v = uniforms.view(-1, 2, 2, COUNTERS).unbind(2)
    radius, angle = torch.sqrt(-2 * torch.log(u)), 2 * torch.pi * v
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2)
    return both.flatten()[skipped : skipped + count].to(dtype)

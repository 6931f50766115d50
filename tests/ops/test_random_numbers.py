"""The random numbers of the probability path: Philox, its streams, their distributions."""

import math

import pytest
import torch

import flowkern
from flowkern.distributions import normal_rows
from flowkern.ops import _random, probability_path
from tests.cases.probability_path import Case

# Counter, key and output of Philox4x32-10, from the known answers of the authors' Random123 1.14.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, output", KNOWN)
def test_philox_known_answers(counter, key, output):
    words = _random.philox(*([torch.tensor(v) for v in values] for values in (counter, key)))
    assert tuple(map(int, words)) == output


def test_words_of_a_stream():
    """Word 128b + 32j + i is output j of counter 32b + i; the seed's two halves are the key."""
    seed = (0x299F31D0 << 32) + 0xA4093822
    words = _random.words(300, 7, torch.tensor(seed))
    for place in (0, 31, 32, 127, 128, 299):
        block, output, i = place // 128, place % 128 // 32, place % 32
        counter = [torch.tensor(v) for v in (32 * block + i, 0, 7, 0)]
        key = [torch.tensor(v) for v in (0xA4093822, 0x299F31D0)]
        assert words[place] == _random.philox(counter, key)[output]


def test_uniform_stays_inside():
    ends = torch.tensor([0, 0xFFFFFFFF])
    for dtype in (torch.float32, torch.float64):
        assert _random.uniform(ends, dtype).tolist() == [2.0**-24, 1 - 2.0**-24]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822])
def test_same_words_on_every_backend(backend, seed):
    """t shows the upper 23 bits of the words, so equal t are equal words."""
    zeros = torch.zeros(1023, 2)
    with flowkern.backend(backend):
        t, _, _ = probability_path(zeros, zeros, seed=seed)
    assert torch.equal(t, _random.uniform(_random.words(1023, 1, torch.tensor(seed)), torch.float32))


def drawn(seed):
    """The t and the noise of a call."""
    zeros = torch.zeros(2**12, 4, dtype=torch.float64)
    t, noise, _ = probability_path(zeros, zeros, sigma=1.0, seed=seed)
    return t, noise.flatten()


def kolmogorov(values, cdf):
    """√n times the largest distance between the empirical and the true distribution function."""
    n = len(values)
    expected = cdf(values.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max((steps[1:] - expected).max(), (expected - steps[:-1]).max()) * math.sqrt(n)


def test_distributions(on_backend):
    """t is uniform and noise normal over 25 seeds, neither too badly nor too well; four moments.

    The distribution of Kolmogorov's distance has median 0.83, and 2.1 is its quantile 0.9997.
    """
    samples = [drawn(seed) for seed in range(25)]
    for which, cdf in ((0, lambda v: v), (1, torch.special.ndtr)):
        distances = torch.stack([kolmogorov(sample[which], cdf) for sample in samples])
        assert 0.65 < distances.median() < 1.05 and distances.max() < 2.1
    noise = torch.cat([noise for _, noise in samples])
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = noise.pow(power).mean().item() - moment
        assert abs(error) < 3 * math.sqrt(variance / len(noise)), power


def test_independence(on_backend):
    """Neighbours, pairs of Box and Muller, counters, streams and seeds are uncorrelated."""
    (t, noise), (_, other) = drawn(5), drawn(6)
    pairs = [(noise[:-lag], noise[lag:]) for lag in (1, 8, 32, 64, 96, 128)]
    pairs += [(noise, other), (noise[: len(t)], t - 0.5)]
    pairs += [(a.square() - 1, b.square() - 1) for a, b in pairs[:6]]
    for number, (a, b) in enumerate(pairs):
        correlation = (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()
        assert abs(correlation) < 3 / math.sqrt(len(a)), number


def test_seeds(on_backend):
    x0, x1 = torch.randn(2, 40, 3)
    first, again = (probability_path(x0, x1, sigma=1.0, seed=s) for s in (3, torch.tensor(3)))
    assert all(map(torch.equal, first, again))
    torch.manual_seed(1)
    first, other = (probability_path(x0, x1, sigma=1.0) for _ in range(2))
    torch.manual_seed(1)
    again = probability_path(x0, x1, sigma=1.0)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first[:2], other[:2]))


def test_numbers_depend_on_the_place_alone(on_backend):
    """Neither on the number of rows nor on dtype; what is given leaves the rest as it is."""
    x0, x1, t, noise = Case(batch=300, given=True).tensors()
    full = probability_path(x0, x1, sigma=1.0, seed=3)
    part = probability_path(x0[:77], x1[:77], sigma=1.0, seed=3)
    assert all(torch.equal(f[:77], p) for f, p in zip(full, part))
    wide = probability_path(x0.double(), x1.double(), sigma=1.0, seed=3)
    for f, w in zip(full, wide):
        torch.testing.assert_close(f.double(), w, rtol=1e-5, atol=1e-5)
    _, x_t, _ = probability_path(x0, x1, full[0], sigma=1.0, seed=3)
    assert torch.equal(x_t, full[1])


def test_rows_of_noise_depend_on_their_number_alone():
    whole = normal_rows(5, 0, 200, 3, dtype=torch.float64)
    for start, stop in ((0, 1), (41, 44), (42, 43), (7, 7), (64, 200)):
        assert torch.equal(normal_rows(5, start, stop, 3, dtype=torch.float64), whole[start:stop])
    assert not torch.equal(normal_rows(6, 0, 200, 3, dtype=torch.float64), whole)
    far = normal_rows(5, 2**40, 2**40 + 20_000, 3)
    assert far.mean().abs() < 0.02 and abs(far.std() - 1) < 0.02 and far.dtype == torch.float32


def test_rows_of_noise_check_their_arguments():
    for arguments, message in (
        ((0.5, 0, 1, 1), "seed: expected an integer"),
        ((2**63, 0, 1, 1), "seed: expected an int64"),
        ((0, -1, 1, 1), "start: expected an integer >= 0"),
        ((0, 2, 1, 1), "stop: expected an integer >= 2"),
        ((0, 0, 1, 0), "features: expected an integer >= 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            normal_rows(*arguments)
    with pytest.raises(TypeError, match="dtype: expected a floating-point dtype"):
        normal_rows(0, 0, 1, 1, dtype=torch.int64)

"""scikit-learn's handwritten digits as a continuous density problem.

A digit is 8 × 8 grey levels 0 … 16. A density needs continuous data, so a level x becomes
v = (x + u) / 17 with u uniform on [0, 1) (dequantisation), and v ∈ (0, 1) becomes
z = logit(α + (1 − 2α) v) ∈ ℝ. With this Jacobian, the mean of log p(x + u) over u is a lower bound
of the log probability of the levels themselves, which bits per dimension are counted in.

Source: Theis et al., A note on the evaluation of generative models (2016), §3.1;
Dinh et al., Density estimation using Real NVP (2017), §4.1.
"""

import math
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

SIDE, LEVELS, CLASSES = 8, 17, 10
FEATURES = SIDE * SIDE
ALPHA = 0.05
UNIFORM_BITS = math.log2(LEVELS)  # bits per dimension of a model that knows nothing


@dataclass
class Digits:
    """Levels (N, 64) in 0 … 16 and one-hot classes (N, 10), split once."""

    train: torch.Tensor
    train_classes: torch.Tensor
    held_out: torch.Tensor
    held_out_classes: torch.Tensor


def load(held_out=297):
    """The 1797 digits in an order drawn once, the last `held_out` of them kept for testing."""
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    levels = torch.as_tensor(data.data, dtype=torch.float32)[order]
    classes = torch.nn.functional.one_hot(torch.as_tensor(data.target), CLASSES).float()[order]
    return Digits(levels[:-held_out], classes[:-held_out], levels[-held_out:], classes[-held_out:])


def to_logits(levels, noise):
    """z = logit(α + (1 − 2α)(x + u) / 17) and log |dz/dx| summed over the pixels.

    Args:
        levels: x, (…, 64).
        noise: u in [0, 1), of the same shape.
    """
    squeezed = ALPHA + (1 - 2 * ALPHA) * (levels + noise) / LEVELS
    slope = (1 - 2 * ALPHA) / LEVELS / (squeezed * (1 - squeezed))
    return torch.logit(squeezed), slope.log().sum(-1)


def to_levels(logits):
    """The grey levels 0 … 16 that logits (…, 64) stand for."""
    unit = (torch.sigmoid(logits) - ALPHA) / (1 - 2 * ALPHA)
    return (unit * LEVELS).floor().clamp(0, LEVELS - 1)


def bits_per_dim(log_prob_logits, logabsdet):
    """−log₂ p(x + u) / 64 from log p(z) and log |dz/dx|."""
    return -(log_prob_logits + logabsdet) / (FEATURES * math.log(2))

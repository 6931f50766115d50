"""The vector field: a dense network of the state, with time and context in its first layer."""

import math
import numbers
from typing import NamedTuple

import torch
import torch.nn.functional as F

# kind: code, shared with csrc/common/activation.h
ACTIVATIONS = {
    "identity": 0,
    "leaky_relu": 1,
    "tanh": 2,
    "elu": 3,
    "silu": 4,
    "gelu": 5,
    "sigmoid": 6,
    "softplus": 7,
}


class FieldLayer(NamedTuple):
    """One layer: u' = activation(W u + b). The last layer's activation is "identity".

    weight: W (units, inputs).
    bias: b (units,), None for none; of the first layer also (…, units), one row per sample: where a
        context enters.
    activation: a name of `ACTIVATIONS`, or "relu".
    slope: the derivative just below zero, of leaky_relu (max(0, z) + slope·min(0, z)) and elu
        (max(0, z) + slope·(exp(min(0, z)) − 1)). gelu is the exact one, z·Φ(z), and softplus
        log(1 + exp z).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    activation: str = "identity"
    slope: float = 1.0

    def kind(self):
        """(code, slope), as the kernels know the activation."""
        if self.activation == "relu":
            return ACTIVATIONS["leaky_relu"], 0.0
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            names = ", ".join(("relu", *ACTIVATIONS))
            raise ValueError(f"activation: expected one of {names}, got {self.activation!r}")
        if isinstance(self.slope, bool) or not isinstance(self.slope, numbers.Real):
            raise TypeError(f"slope: expected a number, got {self.slope!r}")
        return ACTIVATIONS[self.activation], float(self.slope)


class TimeEmbedding(NamedTuple):
    """What time adds to the first layer: W φ(t), with φ(t) = t, or (cos ωt, sin ωt).

    weight: W (units, 1), or (units, 2·frequencies). Time that is concatenated with the state is
        this, W being the columns of the weight that see it.
    frequencies: ω (frequencies,), None for φ(t) = t.
    """

    weight: torch.Tensor
    frequencies: torch.Tensor | None = None


def embedding(t, frequencies):
    """φ(t) (P,) of a time t (): t, or (cos ωt, sin ωt)."""
    if frequencies is None:
        return t.reshape(1)
    return torch.cat(((t * frequencies).cos(), (t * frequencies).sin()))


def activation(z, code, slope):
    """Each kind of ACTIVATIONS, by its code."""
    if code == 0:
        return z
    if code == 1:
        return F.leaky_relu(z, slope)
    if code == 3:
        return F.elu(z, slope)
    if code == 7:
        return torch.logaddexp(z, torch.zeros_like(z))
    return (None, None, torch.tanh, None, F.silu, F.gelu, torch.sigmoid)[code](z)


def derivative(z, code, slope):
    """activation'(z), differentiable; at a kink that from the left, as PyTorch has it."""
    if code == 0:
        return torch.ones_like(z)
    if code == 1:
        return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope))
    if code == 2:
        return 1 - torch.tanh(z).square()
    if code == 3:
        return torch.where(z > 0, torch.ones_like(z), slope * torch.exp(z.clamp(max=0)))
    if code == 5:
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        return torch.special.ndtr(z) + z * density
    s = torch.sigmoid(z)
    if code == 4:
        return s * (1 + z * (1 - s))
    return s if code == 7 else s * (1 - s)

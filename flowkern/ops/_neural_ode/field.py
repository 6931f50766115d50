"""The vector field: a dense network of the state, with time and context in its first layer."""

from typing import NamedTuple

import torch

from flowkern.ops._activation import Activation


class FieldLayer(NamedTuple):
    """One layer: u' = activation(W u + b). The last layer's activation is "identity".

    weight: W (units, inputs).
    bias: b (units,), None for none; of the first layer also (…, units), one row per sample: where a
        context enters.
    activation: an `Activation`, or its name.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    activation: Activation | str = "identity"


class TimeEmbedding(NamedTuple):
    """What time adds to the first layer: W φ(t), with φ(t) = t, or (cos ωt, sin ωt).

    weight: W (units, 1), or (units, 2·frequencies). Time that is concatenated with the state is
        this, W being the columns of the weight that see it.
    frequencies: ω (frequencies,), None for φ(t) = t.
    """

    weight: torch.Tensor
    frequencies: torch.Tensor | None = None


def embedding(t: torch.Tensor, frequencies: torch.Tensor | None) -> torch.Tensor:
    """φ(t) (P,) of a time t (): t, or (cos ωt, sin ωt)."""
    if frequencies is None:
        return t.reshape(1)
    return torch.cat(((t * frequencies).cos(), (t * frequencies).sin()))

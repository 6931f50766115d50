"""Small calls of the op, by which `python -m flowkern check` tests an installation."""

import torch

from flowkern.ops._masked_autoregressive import AffineElement, Degrees, MaskedLayer, masked_autoregressive
from flowkern.ops._problem import FEATURES, ROWS, UNITS, Draw, Problem, both, layers


def problems(draw: Draw) -> list[Problem]:
    element = AffineElement("softplus", True)
    degrees = Degrees(list(range(1, FEATURES + 1)), [[i % (FEATURES + 1) for i in range(UNITS)]])

    def call(
        x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor, inverse: bool
    ) -> tuple[torch.Tensor, ...]:
        network = [MaskedLayer(w1, b1, "tanh"), MaskedLayer(w2, b2)]
        return masked_autoregressive(x, network, degrees, element, inverse=inverse)

    return both("masked_autoregressive", (draw(ROWS, FEATURES), *layers(draw, FEATURES, 2 * FEATURES)), call)

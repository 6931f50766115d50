"""What an inverse of one autoregressive layer costs as the number of features D grows.

The layer is nflows' MaskedAffineAutoregressiveTransform, untrained, with two hidden layers of 4·D
units. nflows inverts it in D passes of the conditioner; the triangular solve reads each weight once.
"""

import copy
from dataclasses import dataclass

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform

import flowkern
from flowkern.report.timing import interleaved

BATCH = 256
SAMPLE_SECONDS = 0.02


@dataclass
class Cost:
    """Timings at one D by the way of doing it; "eager inverse" is missing where it takes too long."""

    features: int
    timings: dict

    def ratio(self, name):
        """Median over the rounds of the time of the inverse over that of the forward, or None."""
        forward, inverse = (self.timings.get(f"{name} {way}") for way in ("forward", "inverse"))
        return inverse and forward.speedup_over(inverse)


def measure(settings, on_size):
    """A `Cost` for each of settings.cost_features."""
    costs = []
    for features in settings.cost_features:
        calls = _calls(features, peer=features <= settings.cost_peer_features)
        for call in calls.values():
            call()
        timings = interleaved(calls, rounds=settings.cost_rounds, sample_seconds=SAMPLE_SECONDS)
        costs.append(Cost(features, timings))
        on_size(f"D = {features}")
    return costs


def _calls(features, peer):
    torch.manual_seed(7)
    plain = MaskedAffineAutoregressiveTransform(
        features, 4 * features, num_blocks=1, use_residual_blocks=False
    )
    fast, x = flowkern.accelerate(copy.deepcopy(plain)), torch.randn(BATCH, features)
    ways = {
        "eager forward": plain,
        "eager inverse": plain.inverse,
        "flowkern forward": fast,
        "flowkern inverse": fast.inverse,
    }
    if not peer:
        del ways["eager inverse"]
    return {name: torch.no_grad()(lambda way=way: way(x)) for name, way in ways.items()}

"""What an inverse of one autoregressive layer costs as the number of features D grows.

The layer is nflows' MaskedAffineAutoregressiveTransform, untrained, with two hidden layers of 4·D
units. nflows inverts it in D passes of the conditioner; the triangular solve reads each weight once.
"""

import copy

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform

import flowkern
from demo.cost_chart import WAYS, Cost
from flowkern.report.timing import interleaved

BATCH = 256
SAMPLE_SECONDS = 0.02


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
    plain = MaskedAffineAutoregressiveTransform(features, 4 * features, num_blocks=1, use_residual_blocks=False)
    fast, x = flowkern.accelerate(copy.deepcopy(plain)), torch.randn(BATCH, features)
    ways = dict(zip(WAYS, (plain, plain.inverse, fast, fast.inverse)))
    if not peer:
        del ways["eager inverse"]
    return {name: torch.no_grad()(lambda way=way: way(x)) for name, way in ways.items()}

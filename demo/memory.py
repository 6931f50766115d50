"""What the gradient of a continuous flow takes in memory, against the number of its steps."""

import math
from dataclasses import dataclass

import torch

from demo import moons
from demo.continuous import Torchdiffeq
from flowkern.flows import CNF
from flowkern.report.memory import peak_memory

BATCH = 256
# way: how its gradient is taken, given the number of steps
WAYS = {
    "discrete": lambda steps: {},
    "checkpoints": lambda steps: {"checkpoint": 2 ** (round(math.log2(steps)) // 2)},
    "adjoint": lambda steps: {"gradient": "adjoint"},
}


@dataclass
class Memory:
    """Bytes at the peak of one forward and backward, by way."""

    steps: int
    peaks: dict


def measure(flow, settings, on_step):
    """A `Memory` for each number of steps; torchdiffeq's as far as settings.memory_peer_steps.

    Args:
        flow: a CNF, whose field is solved with so many steps.
    """
    x, field, found = moons.points(BATCH, seed=2), flow.transform.field, []
    for steps in settings.memory_steps:
        flows = {way: CNF(field=field, steps=steps, **options(steps)) for way, options in WAYS.items()}
        calls = {way: _gradient(lambda x, flow=flow: flow().log_prob(x), flow, x) for way, flow in flows.items()}
        if steps <= settings.memory_peer_steps:
            peer = Torchdiffeq(flows["discrete"])
            calls["torchdiffeq"] = _gradient(peer.log_prob, peer, x)
        found.append(Memory(steps, {way: peak_memory(call) for way, call in calls.items()}))
        on_step()
    return found


def _gradient(log_prob, model, x):
    """A call that adds to the gradients of the parameters, which are there already."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: log_prob(x).mean().backward()

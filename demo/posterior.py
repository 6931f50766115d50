"""Neural posterior estimation as sbi does it: its MAF, plain and accelerated, and a simulator whose posterior is known.

θ ~ N(0, I) with 5 parameters, and 10 observations x = A θ + 0.5·noise. The posterior is normal, so the best
possible loss is known, too.
"""

import itertools
import time
from dataclasses import dataclass, field

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform, RandomPermutation

import flowkern

PARAMETERS, OBSERVATIONS, NOISE = 5, 10, 0.5
LAYERS, HIDDEN, BATCH, LEARNING_RATE, EVERY = 5, 50, 200, 5e-4, 25
RUNS = {
    "plain": (False, {}),
    "accelerated": (True, {}),
    "accelerated, fused Adam": (True, {"fused": True}),
}


@dataclass
class Run:
    """One training run: held-out nats every `EVERY` steps, and the seconds spent on steps until then."""

    name: str
    seconds: list = field(default_factory=list)
    nats: list = field(default_factory=list)


def build(accelerated):
    """The flow that sbi's `maf` builds for these sizes, always with the same weights."""
    torch.manual_seed(0)
    layers = [
        transform
        for _ in range(LAYERS)
        for transform in (
            MaskedAffineAutoregressiveTransform(
                PARAMETERS, HIDDEN, OBSERVATIONS, num_blocks=2, use_residual_blocks=False, activation=torch.tanh
            ),
            RandomPermutation(PARAMETERS),
        )
    ]
    flow = Flow(CompositeTransform(layers), StandardNormal([PARAMETERS]))
    return flowkern.accelerate(flow) if accelerated else flow


def simulations(count, seed):
    """θ (count, 5) and x (count, 10)."""
    generator = torch.Generator().manual_seed(seed)
    theta, noise = (
        torch.randn(count, PARAMETERS, generator=generator),
        torch.randn(count, OBSERVATIONS, generator=generator),
    )
    return theta, theta @ _mixing().T + NOISE * noise


def _mixing():
    return torch.randn(OBSERVATIONS, PARAMETERS, generator=torch.Generator().manual_seed(7)) / PARAMETERS**0.5


def best_nats(theta, x):
    """−log p(θ | x), averaged, of the posterior itself: N(Σ Aᵀ x/σ², Σ) with Σ⁻¹ = I + AᵀA/σ²."""
    precision = torch.eye(PARAMETERS) + _mixing().T @ _mixing() / NOISE**2
    mean = torch.linalg.solve(precision, _mixing().T @ x.T / NOISE**2).T
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    return -exact.log_prob(theta).mean().item()


def train(steps, on_step):
    """A `Run` of each way, trained in turns, and the best nats.

    Args:
        on_step: called after every step, for a progress bar.
    """
    held_out = simulations(2000, seed=1)
    runs = [_training(name, steps, held_out) for name in RUNS]
    done = [None] * len(runs)
    for _ in range(0, steps, EVERY):
        for i, run in enumerate(runs):
            for done[i] in itertools.islice(run, EVERY):
                on_step()
    return done, best_nats(*held_out)


def _training(name, steps, held_out):
    accelerated, options = RUNS[name]
    flow, data = build(accelerated), simulations(20_000, seed=0)
    optimizer = torch.optim.Adam(flow.parameters(), LEARNING_RATE, **options)
    draw, run, spent = torch.Generator().manual_seed(2), Run(name), 0.0
    for step in range(1, steps + 1):
        rows = torch.randint(len(data[0]), (BATCH,), generator=draw)
        theta, x = (t[rows] for t in data)
        start = time.perf_counter()
        optimizer.zero_grad()
        (-flow.log_prob(theta, x).mean()).backward()
        optimizer.step()
        spent += time.perf_counter() - start
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                run.nats.append(-flow.log_prob(*held_out).mean().item())
            run.seconds.append(spent)
        yield run


def profile(seconds):
    """`flowkern.profile` of the untrained flow, as a dictionary."""
    return flowkern.profile(build(False), *simulations(BATCH, seed=3), seconds=seconds).as_dict()

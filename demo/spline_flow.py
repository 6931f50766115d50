"""The demo's neural spline flow, as any user of nflows would write it, and its training."""

import copy
import time
from dataclasses import dataclass, field

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
)

from demo import digits

LEARNING_RATE = 3e-3
DROPOUT = 0.2


def build(settings):
    """A class-conditional spline flow of coupling layers, from nflows alone."""

    def conditioner(in_features, out_features):
        return ResidualNet(
            in_features,
            out_features,
            hidden_features=settings.hidden_features,
            context_features=digits.CLASSES,
            dropout_probability=DROPOUT,
        )

    layers = []
    for i in range(settings.layers):
        layers.append(RandomPermutation(digits.FEATURES))
        layers.append(
            PiecewiseRationalQuadraticCouplingTransform(
                mask=(torch.arange(digits.FEATURES) + i) % 2,
                transform_net_create_fn=conditioner,
                num_bins=settings.bins,
                tails="linear",
                tail_bound=3.0,
            )
        )
    return Flow(CompositeTransform(layers), StandardNormal([digits.FEATURES]))


@torch.no_grad()
def nudged(flow, relative=1e-7):
    """A copy of `flow` with every weight moved by about one rounding error of float32."""
    copied = copy.deepcopy(flow)
    for weight in copied.parameters():
        weight.mul_(1 + relative * torch.randn_like(weight).sign())
    return copied


@dataclass
class Curve:
    """One training run: bits per dimension at each step and on held-out digits, and when."""

    bits: list = field(default_factory=list)
    seconds: list = field(default_factory=list)  # spent on training steps so far
    held_out_steps: list = field(default_factory=list)
    held_out_bits: list = field(default_factory=list)


def training(flow, data, settings, seed):
    """Maximise the likelihood with Adam, step by step; everything random follows from `seed`.

    Yields the Curve so far after every step. Several runs may take turns: each has a stream of
    random numbers of its own.
    """
    torch.manual_seed(seed)
    randomness = torch.get_rng_state()
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=settings.steps, pct_start=0.1)
    curve, spent = Curve(), 0.0
    for step in range(1, settings.steps + 1):
        torch.set_rng_state(randomness)
        flow.train()
        start = time.perf_counter()
        bits = training_step(flow.log_prob, optimizer, *batch(data, settings.batch))
        schedule.step()
        spent += time.perf_counter() - start
        randomness = torch.get_rng_state()
        curve.bits.append(bits)
        curve.seconds.append(spent)
        if step % settings.evaluate_every == 0 or step == settings.steps:
            curve.held_out_steps.append(step)
            curve.held_out_bits.append(held_out_bits(flow, data))
        yield curve


def batch(data, size):
    """Digits drawn with replacement and dequantised anew: logits, log |dz/dx|, classes."""
    rows = torch.randint(len(data.train), (size,))
    levels = data.train[rows]
    logits, logabsdet = digits.to_logits(levels, torch.rand_like(levels))
    return logits, logabsdet, data.train_classes[rows]


def training_step(log_prob, optimizer, logits, logabsdet, classes):
    """One step of gradient descent on bits per dimension; returns them."""
    optimizer.zero_grad()
    bits = digits.bits_per_dim(log_prob(logits, classes), logabsdet).mean()
    bits.backward()
    optimizer.step()
    return bits.item()


@torch.no_grad()
def held_out_bits(flow, data):
    """Bits per dimension of the held-out digits, the same four dequantisations every time."""
    flow.eval()
    generator = torch.Generator().manual_seed(1)
    levels = data.held_out.repeat(4, 1)
    noise = torch.rand(levels.shape, generator=generator)
    logits, logabsdet = digits.to_logits(levels, noise)
    log_prob = flow.log_prob(logits, data.held_out_classes.repeat(4, 1))
    return digits.bits_per_dim(log_prob, logabsdet).mean().item()

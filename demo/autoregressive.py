"""Masked autoregressive flows of nflows and zuko on the digits: sampling, plain and accelerated."""

import copy

import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    ReversePermutation,
)
from torch import nn

import flowkern
from demo import agreement, digits, speed, spline_flow
from flowkern.report.timing import interleaved


class NflowsMAF(nn.Module):
    """nflows' MAF, as any user of nflows would write it."""

    title = "MAF of nflows"

    def __init__(self, settings):
        super().__init__()
        layers = []
        for _ in range(settings.maf_layers):
            layers.append(ReversePermutation(digits.FEATURES))
            layers.append(
                MaskedAffineAutoregressiveTransform(
                    digits.FEATURES,
                    settings.maf_hidden,
                    context_features=digits.CLASSES,
                    num_blocks=1,
                    use_residual_blocks=False,
                )
            )
        self.flow = Flow(CompositeTransform(layers), StandardNormal([digits.FEATURES]))

    def log_prob(self, x, classes):
        return self.flow.log_prob(x, classes)

    def from_noise(self, noise, classes):
        """The samples made of noise, and log |∂x/∂noise|."""
        return self.flow._transform.inverse(noise, classes)


class ZukoMAF(nn.Module):
    """zuko's MAF, as any user of zuko would write it."""

    title = "MAF of zuko"

    def __init__(self, settings):
        super().__init__()
        self.flow = zuko.flows.MAF(
            digits.FEATURES,
            context=digits.CLASSES,
            transforms=settings.maf_layers,
            hidden_features=(settings.maf_hidden,) * 2,
        )

    def log_prob(self, x, classes):
        return self.flow(classes).log_prob(x)

    def from_noise(self, noise, classes):
        """The samples made of noise, and log |∂x/∂noise|."""
        return self.flow(classes).transform.inv.call_and_ladj(noise)


def build(settings, seed):
    """The two flows, untrained."""
    torch.manual_seed(seed)
    return [NflowsMAF(settings), ZukoMAF(settings)]


def train(flows, data, settings, seed, advances):
    """Train each flow plain; held-out bits per dimension of each."""
    bits = []
    for flow, advance in zip(flows, advances):
        for curve in spline_flow.training(flow, data, settings.for_maf(), seed):
            advance(f"{curve.bits[-1]:.3f} bits/dim, {curve.seconds[-1]:.1f} s")
        bits.append(curve.held_out_bits[-1])
    return bits


def agreements(flows):
    """Rows as of `agreement.agreement`: samples of the same noise and their log-dets."""
    rows = []
    for flow in flows:
        noise, classes = _noise()
        trio = flow, flowkern.accelerate(copy.deepcopy(flow)), copy.deepcopy(flow).double()
        for i, what in enumerate(("samples (logits)", "log-dets (nats)")):
            rows.append(
                agreement.row(
                    f"{flow.title}, {what}",
                    lambda flow, dtype, i=i: flow.from_noise(noise.to(dtype), classes.to(dtype))[i],
                    trio,
                )
            )
    return rows


def measure(flows, settings, on_round):
    """One `speed.Work` for each flow: samples of given noise, plain and accelerated."""
    noise, classes = _noise()
    works = []
    for flow in flows:
        ways = {"eager": flow, "flowkern": flowkern.accelerate(copy.deepcopy(flow))}
        calls = {name: _sampling(way.eval(), noise, classes) for name, way in ways.items()}
        timings = interleaved(
            calls,
            rounds=settings.rounds,
            sample_seconds=settings.sample_seconds,
            on_round=on_round,
        )
        works.append(speed.Work(f"sampling, {flow.title}", len(noise), timings))
    return works


def _sampling(flow, noise, classes):
    return torch.no_grad()(lambda: flow.from_noise(noise, classes))


def _noise():
    samples = speed.SAMPLES_PER_CLASS * digits.CLASSES
    noise = torch.randn(samples, digits.FEATURES, generator=torch.Generator().manual_seed(6))
    return noise, torch.eye(digits.CLASSES).repeat(speed.SAMPLES_PER_CLASS, 1)

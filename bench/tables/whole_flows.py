"""Tables of whole flows as their users have them: sbi's default estimators, zuko's of the same size, and
the three flows of libraries.py in nflows.

A training step is zero_grad, the mean of −log_prob and backward, with no optimiser, with torch.optim.Adam as
users write it, or with its fused variant. Samples are made of given noise, as in flows.py. flowjax, where it
is installed, jits its whole step; its conditioners are MLPs of the same width, its weights its own.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import flowkern
from bench import flowjax_flows, libraries, peers
from bench.harness import Candidate, Table
from bench.tables.flows import TASKS

nflows_distributions = peers.optional("nflows.distributions")
nflows_flows = peers.optional("nflows.flows")
nflows_nets = peers.optional("nflows.nn.nets")
nflows_transforms = peers.optional("nflows.transforms")
zuko = peers.optional("zuko")

D, CONTEXT, HIDDEN, LAYERS, BINS = 5, 10, 50, 5, 10
OPTIMISERS = {
    "forward and backward": None,
    "training step": torch.optim.Adam,
    "training step, fused Adam": partial(torch.optim.Adam, fused=True),
}


class Flow(NamedTuple):
    """build() makes it; of how many features and context features; the batches of training and of the rest."""

    build: Callable
    features: int
    context: int
    training: tuple
    inference: tuple


# The flows.


class _Standardize(nn.Module):
    """As sbi's embedding net for the context."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, CONTEXT))
        self.register_buffer("std", torch.linspace(0.5, 2.0, CONTEXT))

    def forward(self, context):
        return (context - self.mean) / self.std


def _sbi(transforms):
    first = nflows_transforms.PointwiseAffineTransform(torch.linspace(-0.5, 0.5, D), torch.linspace(0.5, 2.0, D))
    return nflows_flows.Flow(
        nflows_transforms.CompositeTransform([first, *transforms]),
        nflows_distributions.StandardNormal((D,)),
        nn.Sequential(_Standardize(), nn.Identity()),
    )


def _sbi_maf():
    return _sbi(
        itertools.chain.from_iterable(
            (
                nflows_transforms.MaskedAffineAutoregressiveTransform(
                    D, HIDDEN, CONTEXT, num_blocks=2, use_residual_blocks=False, activation=torch.tanh
                ),
                nflows_transforms.RandomPermutation(D),
            )
            for _ in range(LAYERS)
        )
    )


def _sbi_nsf():
    net = partial(nflows_nets.ResidualNet, hidden_features=HIDDEN, context_features=CONTEXT, num_blocks=2)
    spline = partial(
        nflows_transforms.PiecewiseRationalQuadraticCouplingTransform,
        transform_net_create_fn=net, num_bins=BINS, tails="linear", tail_bound=3.0,
    )  # fmt: skip
    masks = [[int(feature % 2 != i % 2) for feature in range(D)] for i in range(LAYERS)]
    pairs = ((spline(mask), nflows_transforms.LULinear(D, identity_init=True)) for mask in masks)
    return _sbi(itertools.chain.from_iterable(pairs))


def _zuko(name, **options):
    return getattr(zuko.flows, name)(D, CONTEXT, transforms=LAYERS, hidden_features=(HIDDEN,) * 2, **options)


FLOWS = {
    "sbi maf": Flow(_sbi_maf, D, CONTEXT, (200,), (1, 200, 4096)),
    "sbi nsf": Flow(_sbi_nsf, D, CONTEXT, (200,), (1, 200, 4096)),
    "zuko maf": Flow(partial(_zuko, "MAF", randperm=True), D, CONTEXT, (200,), (1, 200, 4096)),
    "zuko nsf": Flow(partial(_zuko, "NSF", bins=BINS), D, CONTEXT, (200,), (1, 200, 4096)),
    **{
        f"nflows {name}": Flow(
            partial(libraries.build, "nflows", name), libraries.FEATURES[name], 0, (512,), (1, 64, 4096)
        )
        for name in libraries.FEATURES
    },
}


def _built(name):
    torch.manual_seed(0)
    flow = FLOWS[name].build()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return flow


# What is asked of them.


def _log_prob(flow, x, c=None):
    return flow.log_prob(x, c) if hasattr(flow, "_transform") else flow(c).log_prob(x)


def _sample(flow, noise, c=None):
    if hasattr(flow, "_transform"):
        return flow._transform.inverse(noise, c if c is None else flow._embedding_net(c))[0]
    return flow(c).transform.inv(noise)


def _call(task, flow):
    """`call(x, c)` that does the task."""
    if task in OPTIMISERS:
        return _step(flow, OPTIMISERS[task])
    ask = _log_prob if task == "log_prob" else _sample
    return torch.no_grad()(lambda *inputs: (ask(flow, *inputs),))


def _step(flow, optimiser, log_prob=_log_prob):
    parameters = list(flow.parameters())
    optimiser = optimiser and optimiser(parameters, lr=1e-4)

    def step(*inputs):
        flow.zero_grad()
        loss = -log_prob(flow, *inputs).mean()
        loss.backward()
        if optimiser is not None:
            optimiser.step()
        return loss, [p.grad for p in parameters]

    return step


QUICK = {"training": (4,), "inference": (2,)}


def tables(names=tuple(FLOWS), training=None, inference=None):
    """One Table for each flow, task and batch size; `training` and `inference` in place of its batches."""
    for name, task in itertools.product(names, (*OPTIMISERS, "log_prob", "sampling")):
        flow = FLOWS[name]
        batches = (training or flow.training) if task in OPTIMISERS else (inference or flow.inference)
        for batch in batches:
            label = f"{name}-{task}".replace(",", "").replace(" ", "-")
            yield Table(
                f"whole_flows-{label}-{batch}",
                f"{name}, {task}, N={batch}",
                partial(_inputs, flow, batch),
                tuple(_candidates(name, task)),
                TASKS["training step" if task in OPTIMISERS else task],
            )


def _inputs(flow, batch):
    x = torch.randn(batch, flow.features)
    return [[x, torch.randn(batch, flow.context)] if flow.context else [x]]


def _candidates(name, task):
    plain, ours = partial(_plain, name, task), f"accelerate({name})"
    yield Candidate(ours, lambda inputs: _call(task, flowkern.accelerate(_built(name))), plain, ours)
    yield Candidate(name, lambda inputs: _call(task, _built(name)), plain, ours)
    if flowjax_flows.installed():
        yield Candidate("flowjax", partial(flowjax_flows.make, name, task), None, ours)


def _plain(name, task, dtype):
    return _call(task, _built(name).to(dtype))

"""Every accelerated model at every batch size: how many times faster than the library's own code it is.

    python -m bench.everywhere [MODEL …] > bench/results/everywhere.md

No figure may be below 1: where the library is faster, its code runs. Results are compared before they are timed.
A call takes from a fraction of a millisecond to seconds, so `SECONDS` limits the rounds of one cell.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import flowkern
from bench import peers
from bench.environment import describe
from bench.tables import whole_flows
from flowkern.report.table import grid
from flowkern.report.timing import interleaved, quartiles

normflows = peers.optional("normflows")
freia = peers.optional("FrEIA.framework")
freia_modules = peers.optional("FrEIA.modules")

BATCHES = (1, 16, 64, 256, 1024, 4096, 16384, 65536)
ROUNDS, SAMPLE_SECONDS, SECONDS = 9, 0.01, 2.0
_LARGEST = 1 << 26  # rows times units of all hidden layers; beyond, the library takes minutes


class Model(NamedTuple):
    """build() makes it; log_prob(model, x, c) and sample(model, noise, c) ask it."""

    build: Callable
    features: int
    context: int
    log_prob: Callable
    sample: Callable


def _of_table(name):
    flow = whole_flows.FLOWS[name]
    build = partial(whole_flows._built, name)
    return Model(build, flow.features, flow.context, whole_flows._log_prob, whole_flows._sample)


def _of_library(library, shape):
    log_prob, sample = whole_flows.libraries.LOG_PROB[library], whole_flows.libraries.SAMPLE[library]
    build = partial(whole_flows.libraries.build, library, shape)
    features = whole_flows.libraries.FEATURES[shape]
    return Model(build, features, 0, lambda m, x, c: log_prob(m, x), lambda m, z, c: sample(m, z))


def _all_in_one():
    def subnet(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))

    flow = freia.SequenceINN(64)
    for _ in range(8):
        flow.append(freia_modules.AllInOneBlock, subnet_constructor=subnet, permute_soft=True)
    return flow


def _coupled_splines():
    torch.manual_seed(0)
    spline = normflows.flows.CoupledRationalQuadraticSpline
    layers = [spline(32, 2, 128, num_bins=8, tail_bound=3, reverse_mask=i % 2 == 1) for i in range(5)]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(32, trainable=False), layers)


def _density(flow, x, c):
    z, logabsdet = flow(x)
    return logabsdet - 0.5 * z.square().sum(-1)


MODELS = {
    **{name: _of_table(name) for name in whole_flows.FLOWS},
    "zuko nsf, coupling": _of_library("zuko", "nsf"),
    "normflows nsf": Model(_coupled_splines, 32, 0, lambda m, x, c: m.log_prob(x), lambda m, z, c: m.forward(z)),
    "normflows realnvp": _of_library("normflows", "realnvp"),
    "FrEIA AllInOneBlock": Model(_all_in_one, 64, 0, _density, lambda m, z, c: m(z, rev=True)[0]),
}


def main(*names):
    """Prints a Markdown table of ratios, one row for each model and work."""
    described = describe(quick=False)
    rows = [row for name in names or MODELS for row in _rows(name)]
    print("# Every accelerated model, from one row to 65 536\n")
    print(
        "The library's time over the accelerated model's, float32: medians of interleaved rounds, and in brackets the"
    )
    print("lower quartile where it is below 1. A dash: the library would take minutes.\n")
    print("\n".join(grid(["model", "work", *map(str, BATCHES)], rows)))
    print("\n" + "; ".join(f"{key}: {value}" for key, value in described.items() if isinstance(value, str)))


def _rows(name):
    model = MODELS[name]
    plain = model.build().eval()
    fast = flowkern.accelerate(copy.deepcopy(plain))
    for work in ("log_prob", "sampling", "forward and backward"):
        yield [name, work, *(_ratio(name, work, model, plain, fast, batch) for batch in BATCHES)]


def _ratio(name, work, model, plain, fast, batch):
    width = sum(p.shape[0] for p in plain.parameters() if p.dim() > 1)
    if batch * width > _LARGEST:
        return "–"
    torch.manual_seed(0)
    x = torch.randn(batch, model.features)
    c = torch.randn(batch, model.context) if model.context else None
    calls = {way: _call(work, model, flow, x, c) for way, flow in (("plain", plain), ("fast", fast))}
    torch.testing.assert_close(calls["fast"](), calls["plain"](), rtol=1e-2, atol=1e-2)  # gradients too
    timings = interleaved(calls, rounds=ROUNDS, sample_seconds=SAMPLE_SECONDS, seconds=SECONDS)
    ratios = sorted(timings["fast"].speedups_over(timings["plain"]))
    middle, lower = timings["fast"].speedup_over(timings["plain"]), quartiles(ratios)[0]
    print(f"{name}, {work}, {batch}: {middle:.2f}", file=sys.stderr)
    return f"{middle:.1f}" if middle >= 10 else f"{middle:.2f}" + (f" ({lower:.2f})" if lower < 1 else "")


def _call(work, model, flow, x, c):
    if work == "forward and backward":
        step = whole_flows._step(flow, None, model.log_prob)
        return lambda: step(x, c)
    ask = model.log_prob if work == "log_prob" else model.sample
    return torch.no_grad()(lambda: ask(flow, x, c))


if __name__ == "__main__":
    main(*sys.argv[1:])

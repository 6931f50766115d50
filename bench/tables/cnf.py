"""Tables of continuous flows: training step and log_prob of 8 features, two hidden layers of 64 units.

flowkern.flows and torchdiffeq take 16 steps of the 3/8 rule with the same weights; zuko chooses its steps for
its own tolerances (atol 1e-6, rtol 1e-5), and `accelerate(zuko, ode=…)` takes 16 in their place. That changes
its numbers, so zuko's own are its truth: what the steps cost in accuracy is what `ode_error` measures.
"""

import itertools
import math
from functools import partial

import torch

import flowkern
from bench import peers
from bench.harness import Candidate, Table
from bench.tables.flows import training_step
from bench.tables.neural_ode import FEATURES, HIDDEN, STEPS, by_torchdiffeq

zuko = peers.optional("zuko")
# candidate: (the one that defines its right result, what it is compared with)
CANDIDATES = {
    "flowkern.flows": ("flowkern.flows", "flowkern.flows"),
    "torchdiffeq": ("flowkern.flows", "flowkern.flows"),
    "accelerate(zuko)": ("accelerate(zuko)", "accelerate(zuko)"),
    "zuko": ("zuko", "accelerate(zuko)"),
}


QUICK = {"batches": (8,)}


def on_gpu(dry_run, compiled):
    return {"batches": (3,) if dry_run else (2048, 65536)}


def tables(batches=(64, 512)):
    """One Table for each task and batch size."""
    for batch, task in itertools.product(batches, ("training step", "log_prob")):
        yield Table(
            f"cnf-{task.replace(' ', '-')}-{batch}",
            f"cnf, {task}, N={batch}, {FEATURES} features, {STEPS} steps",
            lambda batch=batch: [[torch.randn(batch, FEATURES)]],
            tuple(_candidates(task)),
            floor=2e-5,  # of whole solves
        )


def _candidates(task):
    plains = {name: partial(_plain, name, task) for name in CANDIDATES}
    for name, (truth, ours) in CANDIDATES.items():
        yield Candidate(name, lambda inputs, name=name: _call(name, task, torch.float32), plains[truth], ours)


def _plain(name, task, dtype):
    call = _call(name, task, dtype)

    def reference(x):
        with flowkern.backend("reference"):
            return call(x)

    return reference


def _call(name, task, dtype):
    """`call(x)` that does the task."""
    flow = _build("zuko" in name).to(dtype)
    if name.startswith("accelerate"):
        flowkern.accelerate(flow, ode={"method": "rk4", "steps": STEPS})
    log_prob = _by_torchdiffeq if name == "torchdiffeq" else lambda flow, x: flow().log_prob(x)
    if task == "training step":
        return training_step(flow, lambda x: -log_prob(flow, x).mean())
    return torch.no_grad()(lambda x: (log_prob(flow, x),))


def _build(by_zuko):
    """A flow with the same weights each time, none of them zero."""
    torch.manual_seed(0)
    if by_zuko:
        hidden = {"hidden_features": (HIDDEN, HIDDEN), "activation": torch.nn.Tanh}
        return zuko.flows.CNF(FEATURES, **hidden)
    flow = flowkern.flows.CNF(FEATURES, hidden_features=(HIDDEN, HIDDEN), steps=STEPS, times=(1.0, 0.0))
    torch.nn.init.normal_(flow.transform.field.net[-1].weight, std=HIDDEN**-0.5)
    return flow


def _by_torchdiffeq(flow, x):
    """log p(x), of data at t = 0."""
    z, logabsdet = by_torchdiffeq(x, None, *flow.transform.field.net.parameters())
    return logabsdet - 0.5 * (z.square().sum(-1) + FEATURES * math.log(2 * math.pi))

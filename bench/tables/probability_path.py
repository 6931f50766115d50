"""Tables of the probability path: 64 features, σ = 0.1.

By hand are the expressions of torchcfm 1.0.7, which its matchers evaluate one after the other; the
package itself is no dependency, because it asks for torchvision.

| work | given | drawn |
|---|---|---|
| given | x0, x1, t, noise | nothing |
| drawn | x0, x1 | t, noise |
| source | x1 | t, and x0 ~ N(0, 1); σ = 0 |

Where numbers are drawn, each candidate has its own, so that their results cannot be compared: the
formulas are checked in the tables where all is given, the numbers in the tests.
"""

import itertools

import torch

import flowkern
from bench import ops
from bench.harness import Candidate, Table
from flowkern.ops import probability_path

FEATURES, SIGMA, STREAMING = 64, 0.1, 65536
# work: (path, tensors (N, D) that are read, whether t is)
WORKS = {
    "given": ("conditional", 3, True),
    "given-bridge": ("schroedinger_bridge", 3, True),
    "drawn": ("conditional", 2, False),
    "drawn-bridge": ("schroedinger_bridge", 2, False),
    "source": ("target", 1, False),
}


QUICK = {"batches": (1, 64), "compiled": ()}


def on_gpu(dry_run, compiled):
    return {"batches": (3,) if dry_run else (64, 2048, 2**18), "compiled": compiled}


def tables(batches=(64, 2048, STREAMING), compiled=("compile",)):
    """One Table for each work and batch size."""
    for batch, work in itertools.product(batches, WORKS):
        path, tensors, timed = WORKS[work]
        moved = 4 * batch * ((tensors + 2) * FEATURES + 1)
        sets = ops.STREAMING_BYTES // moved + 2 if batch == STREAMING else 1
        candidates = ops.chosen(_candidates(work, path), compiled)
        yield Table(
            f"probability_path-{work}-{batch}",
            f"probability_path, {path}, {work.split('-')[0]}, N={batch}, {ops.memory(moved, sets)}",
            lambda batch=batch, tensors=tensors, timed=timed, sets=sets: [
                _inputs(batch, tensors, timed) for _ in range(sets)
            ],
            (*candidates, ops.limit(moved)),
        )


def _inputs(batch, tensors, timed):
    found = [torch.randn(batch, FEATURES) for _ in range(tensors)]
    return [*found, torch.rand(batch)] if timed else found


def _candidates(work, path):
    hand = {"given": _by_hand(path), "drawn": _drawn(_by_hand(path)), "source": _source}
    function = hand[work.split("-")[0]]
    plain = (lambda dtype: _on_reference(path)) if work.startswith("given") else None
    yield Candidate("flowkern", lambda inputs: _fused(path), plain)
    yield Candidate("eager", lambda inputs: function, plain)
    yield Candidate("compile(eager)", lambda inputs: ops.compile_(function), plain)


def _fused(path):
    def function(x0, x1=None, noise=None, t=None):
        if x1 is None:
            return probability_path(None, x0, path=path)
        return probability_path(x0, x1, t, path=path, sigma=SIGMA, noise=noise)[1 if t is not None else 0 :]

    return function


def _on_reference(path):
    def function(*inputs):
        with flowkern.backend("reference"):
            return _fused(path)(*inputs)

    return function


def _by_hand(path):
    def conditional(x0, x1, noise, t):
        t = t.unsqueeze(-1)
        return t * x1 + (1 - t) * x0 + SIGMA * noise, x1 - x0

    def bridge(x0, x1, noise, t):
        t = t.unsqueeze(-1)
        mean = t * x1 + (1 - t) * x0
        x_t = mean + SIGMA * torch.sqrt(t * (1 - t)) * noise
        return x_t, (1 - 2 * t) / (2 * t * (1 - t) + 1e-8) * (x_t - mean) + x1 - x0

    return conditional if path == "conditional" else bridge


def _drawn(function):
    def drawing(x0, x1):
        t = torch.rand(x0.shape[0], device=x0.device)
        return t, *function(x0, x1, torch.randn_like(x0), t)

    return drawing


def _source(x1):
    x0, t = torch.randn_like(x1), torch.rand(x1.shape[0], device=x1.device)
    return t, torch.lerp(x0, x1, t.unsqueeze(-1)), x1 - x0

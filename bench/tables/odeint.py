"""Tables of `flowkern.odeint` and torchdiffeq's, for fields that are functions of the user.

| field | what it is |
|---|---|
| cheap | y (1 − y), a few elementwise operations: what is left is the solver |
| network | two hidden layers of 64 tanh units, t as one more input |

"rk4" takes 16 steps, the same in both; "dopri5" chooses its own for rtol = atol = 1e-5. Gradients go
to y(0) and the network's parameters, through the steps.
"""

import itertools
from functools import partial

import torch

import flowkern
from bench import ops, peers
from bench.harness import Candidate, Table
from bench.tables.neural_ode import FEATURES, parameters

torchdiffeq = peers.optional("torchdiffeq")
METHODS = {"rk4": {"options": {"step_size": 1 / 16}}, "dopri5": {"rtol": 1e-5, "atol": 1e-5}}
FIELDS = ("cheap", "network")
WORKS = ("forward", "forward+backward")


QUICK = {"batches": (3,), "compiled": ()}


def tables(batches=(32, 1024), compiled=("compile",)):
    """One Table for each method, field, work and batch size."""
    for work in itertools.product(METHODS, FIELDS, WORKS):
        for batch in batches:
            yield Table(
                f"odeint-{'-'.join(work)}-{batch}",
                "odeint, {}, {} field, {}, ".format(*work) + f"N={batch}, D={FEATURES}",
                partial(_inputs, batch),
                tuple(_candidates(work, compiled)),
                # Rounding may change an adaptive step, within the tolerance.
                floor=1e-5 if work[0] == "rk4" else 1e-4,
            )


def _candidates(work, compiled):
    plain = partial(_make, "torchdiffeq", work)
    for library in ("flowkern", "torchdiffeq"):
        yield Candidate(library, lambda inputs, library=library: _make(library, work, torch.float32), plain)
    for compiler in compiled if work[0] == "rk4" else ():
        wrap = partial(ops.compile_, compiler=compiler)
        make = partial(_make, "flowkern", work, torch.float32, wrap)
        yield Candidate(f"{compiler}(flowkern)", lambda inputs, make=make: make(), plain)


def _inputs(batch):
    return [[torch.rand(batch, FEATURES).requires_grad_(), torch.randn(batch, FEATURES)]]


def _make(library, work, dtype, wrap=lambda solve: solve):
    """call(y, grad_y) with weights of its own; work: (method, field, forward…)."""
    method, field, work = work
    weights = [p.requires_grad_("backward" in work) for p in parameters(dtype)] if field == "network" else []
    odeint = flowkern.odeint if library == "flowkern" else torchdiffeq.odeint

    @wrap
    def solve(y, t):
        function = partial(_network, *weights) if weights else _cheap
        return odeint(function, y, t, method=method, **METHODS[method])[-1]

    def call(y, grad_y):
        t = torch.tensor([0.0, 1.0], dtype=y.dtype)
        if "backward" not in work:
            with torch.no_grad():
                return (solve(y, t),)
        end = solve(y, t)
        grad, *grads = torch.autograd.grad(end, (y, *weights), grad_y)
        return end, grad, *([grads] if grads else [])

    return call


def _cheap(t, y):
    return y * (1 - y)


def _network(w1, b1, w2, b2, w3, b3, t, y):
    u = torch.tanh(torch.addmm(b1, torch.cat((y, t.expand(len(y), 1)), 1), w1.mT))
    return torch.addmm(b3, torch.tanh(torch.addmm(b2, u, w2.mT)), w3.mT)

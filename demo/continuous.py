"""Two moons by continuous flows, torchdiffeq against flowkern, and how accurate the solvers are."""

import copy
import math
from dataclasses import dataclass

import torch
from torchdiffeq import odeint

from demo import moons, speed
from flowkern.flows import CNF
from flowkern.matching import FlowMatching
from flowkern.nn import VectorField
from flowkern.ops import FieldLayer, neural_ode
from flowkern.report.timing import interleaved

STEPS = 16
SAMPLES = 2000
STEPS_OF_SOLVERS = tuple(2**k for k in range(8))
# method: evaluations of the field in one step
SOLVERS = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4, "rk4_classic": 4, "dopri5": 6}


# Two flows of the two moons


def by_likelihood(settings, on_step):
    """A CNF that has learnt the moons by maximum likelihood.

    Args:
        on_step: called with a note after every step, for a progress bar.
    """
    torch.manual_seed(0)
    flow = CNF(2, steps=STEPS)

    def loss(x):
        return -flow().log_prob(x).mean()

    _train(flow, loss, settings.cnf_steps, settings, lambda value: on_step(f"{value:.3f} nats"))
    return flow


def by_flow_matching(settings, on_step):
    """A field that has learnt them by flow matching along straight lines, as a flow; no solve is needed."""
    torch.manual_seed(0)
    field = VectorField(2, activation="gelu")
    matching = FlowMatching(field)
    _train(field, matching.loss, settings.matching_steps, settings, lambda value: on_step(f"{value:.3f}"))
    return CNF(field=field, steps=STEPS)


def _train(model, loss_of, steps, settings, on_step):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    data = moons.points(20_000, seed=0)
    for _ in range(steps):
        loss = loss_of(data[torch.randint(len(data), (settings.moons_batch,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(loss.item())


@torch.no_grad()
def held_out_nats(flow):
    """Mean −log p of points that no flow has seen."""
    return -flow().log_prob(moons.points(SAMPLES, seed=1)).mean().item()


# The same flow by torchdiffeq


class Torchdiffeq(torch.nn.Module):
    """The flow as users of torchdiffeq write it, with its trace by autograd, and the same steps."""

    def __init__(self, flow):
        super().__init__()
        self.net, self.steps = copy.deepcopy(flow.transform.field.net), flow.transform.steps

    def field(self, t, x):
        return self.net(torch.cat((x, t.expand(len(x), 1)), 1))

    def field_and_trace(self, t, state):
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            f = self.field(t, x)
            rows = (torch.autograd.grad(f[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1]))
            return f, sum(rows)

    def log_prob(self, x):
        state = self.solve(self.field_and_trace, (x, x.new_zeros(len(x))), 1.0, 0.0)
        noise, logabsdet = (part[-1] for part in state)
        return torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) + logabsdet

    def sample(self, count):
        return self.solve(self.field, torch.randn(count, 2), 0.0, 1.0)[-1]

    def solve(self, field, state, start, end):
        t = torch.tensor([start, end])
        return odeint(field, state, t, method="rk4", options={"step_size": 1 / self.steps})


class Flowkern(torch.nn.Module):
    """The flow with the interface of `Torchdiffeq`."""

    def __init__(self, flow):
        super().__init__()
        self.flow = copy.deepcopy(flow)

    def log_prob(self, x):
        return self.flow().log_prob(x)

    def sample(self, count):
        return self.flow().sample((count,))


def measure(flow, settings, on_round):
    """`speed.Work`s of a training step, log_prob and sampling, and the largest gap of log_prob."""
    torch.manual_seed(3)
    batch, x = moons.points(settings.moons_batch, seed=2), moons.points(SAMPLES, seed=1)
    ways = {"torchdiffeq": Torchdiffeq(flow), "flowkern": Flowkern(flow)}
    kinds = {
        "training step": (len(batch), lambda way: _training_call(copy.deepcopy(way), batch)),
        "log_prob": (len(x), lambda way: torch.no_grad()(lambda: way.log_prob(x))),
        "sampling": (SAMPLES, lambda way: torch.no_grad()(lambda: way.sample(SAMPLES))),
    }
    works = []
    for title, (items, make) in kinds.items():
        calls = {name: make(way) for name, way in ways.items()}
        for call in calls.values():
            call()
        timings = interleaved(
            calls,
            rounds=settings.rounds,
            sample_seconds=settings.sample_seconds,
            on_round=on_round,
        )
        works.append(speed.Work(title, items, timings))
    with torch.no_grad():
        gap = ways["torchdiffeq"].log_prob(x) - ways["flowkern"].log_prob(x)
    return works, gap.abs().max().item()


def _training_call(way, batch):
    optimizer = torch.optim.Adam(way.parameters(), lr=1e-5)

    def call():
        loss = -way.log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


# Accuracy of the solvers


@dataclass
class Accuracy:
    """The largest error of a method at each number of evaluations of the field."""

    method: str
    evaluations: list
    state: list
    logabsdet: list


def accuracies():
    """An `Accuracy` for each solver on dx/dt = tanh x, in float64.

    sinh x(t) = eᵗ sinh x(0), so log|∂x(t)/∂x(0)| = t + log cosh x(0) − log cosh x(t).
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    layers = FieldLayer(one, None, "tanh"), FieldLayer(one)
    x, end = torch.linspace(-3, 3, 61, dtype=torch.float64).unsqueeze(-1), 2.0
    y = torch.asinh(math.exp(end) * torch.sinh(x))
    logabsdet = (end + x.cosh().log() - y.cosh().log()).squeeze(-1)
    found = []
    for method, stages in SOLVERS.items():
        evaluations, errors = [stages * steps for steps in STEPS_OF_SOLVERS], []
        for steps in STEPS_OF_SOLVERS:
            t = torch.tensor([0.0, end], dtype=torch.float64)
            got = neural_ode(x, layers, t, method=method, steps=steps, trace="exact")
            errors.append([(a[-1] - b).abs().max().item() for a, b in ((got.y, y), (got.logabsdet, logabsdet))])
        found.append(Accuracy(method, evaluations, *map(list, zip(*errors))))
    return found

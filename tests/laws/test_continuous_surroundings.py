"""Continuous flows and flow matching in many surroundings, against their formulas in plain PyTorch."""

import math

import pytest
import torch

from flowkern.flows import CNF
from flowkern.matching import FlowMatching
from flowkern.nn import VectorField
from flowkern.ops import FieldLayer, TimeEmbedding, neural_ode
from tests.surroundings import SURROUNDINGS, Calls, Case

D, STEPS = 3, 2


def layers_of(net):
    return [(part.weight, part.bias) for part in net if hasattr(part, "weight")]


def field_and_trace(layers, t, x):
    """f(t, x) of a network with tanh whose inputs are (x, t), and Tr ∂f/∂x, by its Jacobian."""
    u, jacobian = torch.cat((x, t.to(x.dtype).expand(*x.shape[:-1], 1)), -1), None
    for n, (weight, bias) in enumerate(layers):
        own = weight[:, :D] if n == 0 else weight @ jacobian
        u, jacobian = u @ weight.mT + bias, own
        if n + 1 < len(layers):
            u = torch.tanh(u)
            jacobian = (1 - u * u).unsqueeze(-1) * jacobian
    return u, jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)


def solved(layers, x, start, end, steps=STEPS):
    """x and ∫ Tr at the end of some steps of the 3/8 rule."""
    h, total = (end - start) / steps, 0
    for n in range(steps):
        t = torch.tensor(start + n * h, dtype=torch.float64)
        a, p = field_and_trace(layers, t, x)
        b, q = field_and_trace(layers, t + h / 3, x + h / 3 * a)
        c, r = field_and_trace(layers, t + 2 * h / 3, x + h * (b - a / 3))
        d, s = field_and_trace(layers, t + h, x + h * (a - b + c))
        x, total = x + h / 8 * (a + 3 * b + 3 * c + d), total + h / 8 * (p + 3 * q + 3 * r + s)
    return x, total


class Flow(torch.nn.Module):
    def __init__(self, twin, **options):
        super().__init__()
        self.flow, self.twin = CNF(D, hidden_features=(5, 4), **{"steps": STEPS, **options}), twin
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    @property
    def layers(self):
        return layers_of(self.flow.transform.field.net)


class LogProb(Flow):
    def forward(self, x):
        if not self.twin:
            return self.flow().log_prob(x).to(x.dtype)  # float32 where x has half precision
        steps = self.flow.transform.steps
        y, logabsdet = solved(self.layers, x, 1.0, 0.0, steps)
        return -0.5 * (y.square() + math.log(2 * math.pi)).sum(-1) + logabsdet


class Samples(Flow):
    """What a sampler makes of noise."""

    def forward(self, z):
        return solved(self.layers, z, 0.0, 1.0)[0] if self.twin else self.flow.transform.data(z)


class Loss(torch.nn.Module):
    """The loss of flow matching, for given pairs and times."""

    def __init__(self, twin):
        super().__init__()
        self.twin, self.matching = twin, FlowMatching(VectorField(D, hidden_features=(5,)))

    def forward(self, x1, x0):
        t = torch.sigmoid(x0[:, 0]).detach()
        if not self.twin:
            return self.matching.loss(x1, x0, t=t)
        x_t = torch.lerp(x0, x1, t.unsqueeze(1))
        (first, bias), (last, end) = layers_of(self.matching.field.net)
        hidden = torch.tanh(torch.cat((x_t, t.unsqueeze(1)), 1) @ first.mT + bias)
        return (hidden @ last.mT + end - x1 + x0).square().mean()


def by_op(y, w1, b1, w2, b2):
    layers = FieldLayer(w1[:, :D], b1, "tanh"), FieldLayer(w2, b2)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return neural_ode(y, layers, t, steps=STEPS, time=TimeEmbedding(w1[:, D:])).y[-1]


def by_hand(y, w1, b1, w2, b2):
    return solved([(w1, b1), (w2, b2)], y, 0.0, 1.0)[0]


NOISE = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]).view(3, 1, D)


def estimated(y, w1, b1, w2, b2):
    """The log-det by three noises."""
    layers = FieldLayer(w1, b1, "tanh"), FieldLayer(w2, b2)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = neural_ode(y, layers, t, method="euler", trace=NOISE.to(y.dtype))
    return solution.logabsdet[-1].to(y.dtype)


def estimated_by_hand(y, w1, b1, w2, b2):
    hidden, noise = torch.tanh(y @ w1.mT + b1), NOISE.to(y.dtype)
    return (((1 - hidden * hidden) * (noise @ w1.mT)) @ w2.mT * noise).sum(-1).mean(0)


def call(function, inputs=D + 1):
    generator = torch.Generator().manual_seed(4)
    shapes = dict(w1=(5, inputs), b1=(5,), w2=(D, 5), b2=(D,))
    return Calls(function, **{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def inputs(rows, count=1):
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(rows, D, generator=generator, dtype=torch.float64) for _ in range(count))


def pairs(rows):
    return inputs(rows, 2)


REAL = {"complex": (TypeError, "expected a floating-point dtype, got torch.complex128")}
FIELD = REAL | {"parametrization": (TypeError, "net: expected linear layers and known activations")}
ADJOINT = FIELD | {"second derivatives": (RuntimeError, "gradient: 'adjoint' has no second derivatives")}
CASES = {
    "neural_ode": Case(lambda: call(by_op), lambda: call(by_hand), inputs, REAL),
    "neural_ode estimate": Case(lambda: call(estimated, D), lambda: call(estimated_by_hand, D), inputs, REAL),
    "CNF": Case(lambda: LogProb(False), lambda: LogProb(True), inputs, FIELD, rtols={"bfloat16": 0.2}),
    "CNF adjoint": Case(
        lambda: LogProb(False, steps=12, gradient="adjoint"),
        lambda: LogProb(True, steps=12),
        inputs,
        ADJOINT,
        rtol=1e-2,
        rtols={"bfloat16": 0.2},
    ),  # fmt: skip
    "samples": Case(lambda: Samples(False), lambda: Samples(True), inputs, FIELD),
    "matching": Case(lambda: Loss(False), lambda: Loss(True), pairs, REAL),
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("case", CASES)
def test_surroundings(case, surrounding):
    CASES[case].check(surrounding)

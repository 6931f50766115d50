"""Flow matching: the loss, what its minimum is, errors."""

import math
import sys
from unittest import mock

import numpy
import pytest
import torch
from torch import nn

import flowkern
from flowkern.flows import CNF
from flowkern.matching import FlowMatching, exact_pairing, sinkhorn_pairing
from flowkern.nn import VectorField
from flowkern.ops import probability_path
from flowkern.ops._probability_path import PATHS
from tests.ops.test_probability_path import torchcfm


class Linear(nn.Module):
    """v(t, x, c) = W·(x, t, c)."""

    def __init__(self, features, context=0):
        super().__init__()
        self.layer = nn.Linear(features + 1 + context, features)

    def forward(self, t, x, context=None):
        inputs = (x, t.unsqueeze(-1)) if context is None else (x, t.unsqueeze(-1), context)
        return self.layer(torch.cat(inputs, dim=-1))


class Recorder(nn.Module):
    """The velocity 0; keeps what it was given."""

    def forward(self, t, x, context=None):
        self.seen = t, x, context
        return torch.zeros_like(x)


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_loss_is_the_mean_square(backend, path):
    """From x0, the seed and the noise that the generator gives, in this order."""
    x1, context = torch.randn(40, 3), torch.randn(40, 2)
    field = Linear(3, 2)
    with flowkern.backend(backend):
        generator = torch.Generator().manual_seed(7)
        got = FlowMatching(field, path, sigma=0.2).loss(x1, context=context, generator=generator)
        generator.manual_seed(7)
        x0 = None if path == "target" else torch.randn(40, 3, generator=generator)
        seed = torch.randint(2**63 - 1, (), generator=generator)
        t, x_t, u_t = probability_path(x0, x1, path=path, sigma=0.2, seed=seed)
    want = (field(t, x_t, context) - u_t).square().mean()
    torch.testing.assert_close(got, want)
    got.backward()
    assert all(p.grad.abs().sum() > 0 for p in field.parameters())


# torchcfm's matcher → path and coupling.
MATCHERS = {
    "ConditionalFlowMatcher": ("conditional", None),
    "ExactOptimalTransportConditionalFlowMatcher": ("conditional", "ot"),
    "TargetConditionalFlowMatcher": ("target", None),
    "VariancePreservingConditionalFlowMatcher": ("variance_preserving", None),
    "SchrodingerBridgeConditionalFlowMatcher": ("schroedinger_bridge", "ot"),
    "SchrodingerBridgeConditionalFlowMatcher, sinkhorn": ("schroedinger_bridge", "sinkhorn"),
}


@pytest.mark.parametrize("matcher", MATCHERS)
def test_loss_is_that_of_torchcfm(matcher):
    """For the same pairs, times and noise, which is what x_t has beside the pair."""
    (path, coupling), sigma = MATCHERS[matcher], 0.3
    x0, x1 = torch.randn(2, 60, 3, dtype=torch.float64)
    field = Linear(3).double()
    seen = []
    field.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    model, start = FlowMatching(field, path, coupling, sigma), None if path == "target" else x0
    got = model.loss(x1, start, generator=torch.Generator().manual_seed(3))
    t, x_t, _ = seen.pop()
    if coupling == "ot":
        x0 = x0[exact_pairing(x0, x1)]
    elif coupling == "sinkhorn":
        generator = torch.Generator().manual_seed(3)
        x0 = x0[sinkhorn_pairing(x0, x1, 2 * sigma**2, generator=generator)]
    t = t.unsqueeze(-1)
    zero, one = torch.zeros_like(x1), torch.ones_like(x1)
    mean, _ = torchcfm(path, x0, x1, t, sigma, zero)
    noise = (x_t - mean) / (torchcfm(path, x0, x1, t, sigma, one)[0] - mean)
    assert noise.abs().max() < 5 and 0.8 < noise.std() < 1.2
    wanted_x, wanted_u = torchcfm(path, x0, x1, t, sigma, noise)
    torch.testing.assert_close(x_t, wanted_x, rtol=1e-12, atol=1e-12)
    wanted = (field(t.squeeze(-1), x_t) - wanted_u).square().mean()
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_normal_source_without_noise_is_the_target_path():
    """Without x0 nothing but a seed is drawn outside of the kernel."""
    x1 = torch.randn(40, 3)
    losses = []
    for path in ("conditional", "target"):
        torch.manual_seed(3)
        losses.append(FlowMatching(Linear(3), path))
        losses[-1].field.layer.weight.data.fill_(0.1)
        losses[-1].field.layer.bias.data.zero_()
        torch.manual_seed(3)
        losses[-1] = losses[-1].loss(x1)
    assert torch.equal(*losses)


def test_given_source():
    x1, x0 = torch.randn(2, 40, 3)
    field = Recorder()
    loss = FlowMatching(field).loss(x1, x0)
    torch.testing.assert_close(loss, (x1 - x0).square().mean())
    t, x_t, _ = field.seen
    torch.testing.assert_close(x_t, torch.lerp(x0, x1, t.unsqueeze(-1)))


@pytest.mark.parametrize("coupling", [None, "ot", "sinkhorn"])
def test_a_source_of_another_size(coupling):
    """Every x1 is there once, with an x0 of the source."""
    x1, field = torch.randn(40, 3), Recorder()
    for source in (torch.randn(7, 3), torch.randn(90, 3)):
        FlowMatching(field, coupling=coupling).loss(x1, source, t=torch.zeros(40))
        _, x_t, _ = field.seen
        assert (x_t.unsqueeze(1) == source).all(2).any(1).all()
        FlowMatching(field, coupling=coupling).loss(x1, source, t=torch.ones(40))
        torch.testing.assert_close(field.seen[1], x1)


def test_data_without_features():
    x1, x0, field = torch.randn(40), torch.randn(40), Recorder()
    loss = FlowMatching(field).loss(x1, x0)
    torch.testing.assert_close(loss, (x1 - x0).square().mean())
    t, x_t, _ = field.seen
    torch.testing.assert_close(x_t, torch.lerp(x0, x1, t))
    for coupling in ("ot", "sinkhorn"):
        FlowMatching(field, "schroedinger_bridge", coupling, sigma=0.5).loss(x1)
        assert field.seen[1].shape == (40,)


def test_given_times():
    x1, x0, t, field = torch.randn(40, 3), torch.randn(40, 3), torch.rand(40), Recorder()
    FlowMatching(field).loss(x1, x0, t=t)
    assert torch.equal(field.seen[0], t)
    torch.testing.assert_close(field.seen[1], torch.lerp(x0, x1, t.unsqueeze(1)))


@pytest.mark.parametrize("sigma", [numpy.float32(0.5), numpy.float64(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_sigma_of_other_types(sigma):
    losses = []
    for value in (0.5, sigma):
        torch.manual_seed(0)
        losses.append(FlowMatching(Recorder(), "schroedinger_bridge", "sinkhorn", sigma=value).loss(torch.ones(20, 3)))
    assert torch.equal(*losses)


def test_manual_seed_reproduces():
    model = FlowMatching(Linear(3), "schroedinger_bridge", "sinkhorn", sigma=0.5)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(torch.ones(20, 3)).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_field_is_given_its_own_dtype(dtype):
    """t, x_t and the velocity have that of the data."""
    field = Recorder()
    FlowMatching(field).loss(torch.randn(9, 3, 2, 2, dtype=dtype))
    t, x_t, context = field.seen
    assert (t.dtype, x_t.dtype, context) == (dtype, dtype, None)
    assert (t.shape, x_t.shape) == ((9,), (9, 3, 2, 2))
    FlowMatching(Linear(3).to(dtype)).loss(torch.randn(9, 3, dtype=dtype)).backward()


def test_compiles():
    """The whole loss is one graph for all batch sizes; its numbers are those of the seed that it draws."""
    torch.compiler.reset()
    model = FlowMatching(Linear(3), "schroedinger_bridge", sigma=0.3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    loss = compiled(torch.randn(20, 3))
    loss.backward()
    with torch.no_grad():
        assert compiled(torch.randn(7, 3)).isfinite()
    assert loss.isfinite() and model.field.layer.weight.grad.abs().sum() > 0


# Coefficients of x0, x1 and noise in x_t and u_t at σ, for the laws below.
def _weights(path, t, sigma):
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    if path == "target":
        return (zero, t, 1 - (1 - sigma) * t), (zero, one, (sigma - 1) * one)
    if path == "variance_preserving":
        cos, sin = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
        return (cos, sin, sigma * one), (-math.pi / 2 * sin, math.pi / 2 * cos, zero)
    root = (t * (1 - t)).sqrt()
    bridge = path == "schroedinger_bridge"
    spread = (sigma * root, sigma * (1 - 2 * t) / (2 * root)) if bridge else (sigma * one, zero)
    return (1 - t, t, spread[0]), (-one, one, spread[1])


class Gaussian(nn.Module):
    """v(t, x) = E[u_t | x_t = x] + a + b·(x − E x_t) from N(0, 1) to N(m, s²), feature by feature."""

    mean, deviation = 1.5, 0.4

    def __init__(self, path, sigma):
        super().__init__()
        self.path, self.sigma = path, sigma
        self.change = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, t, x, context=None):
        of_x, of_u = _weights(self.path, t.unsqueeze(-1), self.sigma)
        variances = 1, self.deviation**2, 1
        variance = sum(a * a * v for a, v in zip(of_x, variances))
        covariance = sum(a * b * v for a, b, v in zip(of_x, of_u, variances))
        centred = x - of_x[1] * self.mean
        change = self.change[0] + self.change[1] * centred
        return of_u[1] * self.mean + covariance / variance * centred + change


@pytest.mark.parametrize("path", PATHS)
def test_the_minimum_is_the_marginal_velocity(path):
    """Between Gaussians E[u_t | x_t] is known: no change of offset or slope lowers the loss there."""
    sigma, n = 0.3, 100_000
    field = Gaussian(path, sigma)
    model = FlowMatching(field, path, sigma=sigma)
    x1 = field.mean + field.deviation * torch.randn(n, 1, dtype=torch.float64)
    at_minimum = model.loss(x1, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(at_minimum, field.change)
    assert slope.abs().max() < 0.04  # about 4 standard deviations
    for change in ((0.3, 0), (-0.3, 0), (0, 0.3), (0, -0.3)):
        field.change.data = torch.tensor(change, dtype=torch.float64)
        loss = model.loss(x1, generator=torch.Generator().manual_seed(1))
        assert loss > at_minimum + 0.01, change


# --- the model that comes out --------------------------------------------------------------------


def test_a_matched_field_has_a_likelihood_and_the_right_gradients():
    """log p of its flow is near the data's own; its gradients to x, context and weights are right."""
    torch.manual_seed(0)
    field = VectorField(2, 1, hidden_features=(16, 16), activation="silu").double()
    model = FlowMatching(field)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        c = torch.randn(128, 1, dtype=torch.float64)
        optimizer.zero_grad()
        model.loss(c + 0.5 * torch.randn(128, 2, dtype=torch.float64), context=c).backward()
        optimizer.step()
    flow, c = CNF(field=field, steps=8), torch.randn(400, 1, dtype=torch.float64)
    x = c + 0.5 * torch.randn(400, 2, dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.distributions.Normal(c, 0.5).log_prob(x).sum(-1)
        assert (wanted - flow(c).log_prob(x)).mean().abs() < 0.1
    x, c = x[:3].requires_grad_(), c[:3].requires_grad_()
    # gradcheck moves what it is given in place: the weights are the field's own.
    assert torch.autograd.gradcheck(lambda x, c, *_: flow(c).log_prob(x), (x, c, *field.parameters()))


# --- errors --------------------------------------------------------------------------------------

BAD = [
    (TypeError, "field: .*function", dict(field=lambda t, x, context: x)),
    (ValueError, "path: .*conditional.*'ot'", dict(path="ot")),
    (ValueError, "coupling: .*'exact'", dict(coupling="exact")),
    (ValueError, "coupling: .*target", dict(path="target", coupling="ot")),
    (ValueError, "sigma: .*0", dict(path="schroedinger_bridge", coupling="sinkhorn")),
    (ValueError, "sigma: .*-1", dict(sigma=-1)),
    (ValueError, "sigma: .*nan", dict(sigma=float("nan"))),
    (ValueError, "sigma: .*'a'", dict(sigma="a")),
    (ValueError, "sigma: .*tensor", dict(sigma=torch.ones(2))),
    (ValueError, "sigma: no gradient flows to it", dict(sigma=torch.ones((), requires_grad=True))),
]


@pytest.mark.parametrize("error, message, arguments", BAD)
def test_bad_arguments(error, message, arguments):
    with pytest.raises(error, match="^" + message):
        FlowMatching(**{"field": Linear(3), **arguments})


def test_bad_batches():
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="^x0: .*takes none"):
        FlowMatching(Linear(3), "target").loss(x, x)
    with pytest.raises(ValueError, match=r"^x0: expected samples of shape \(3,\), got \(2,\)"):
        FlowMatching(Linear(3), coupling="ot").loss(x, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"^t: expected shape \(4,\), got \(3,\)"):
        FlowMatching(Linear(3)).loss(x, t=torch.zeros(3))
    model = FlowMatching(Recorder())
    model.field.forward = lambda t, x, context: x[:, :2]
    with pytest.raises(ValueError, match=r"^field: .*\(4, 3\), got \(4, 2\)"):
        model.loss(x)
    with pytest.raises(TypeError, match="^x1: .*list"):
        FlowMatching(Linear(3)).loss([[0.0]])
    with pytest.raises(TypeError, match="^x1: .*int64"):
        FlowMatching(Linear(3), coupling="ot").loss(x.long())


def test_without_pot():
    with mock.patch.dict(sys.modules, ot=None), pytest.raises(ImportError, match="pip install pot"):
        FlowMatching(Linear(3), coupling="ot")

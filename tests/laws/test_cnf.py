"""Laws of continuous flows, in float64 unless said."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import flowkern
from flowkern.flows import CNF
from flowkern.nn import VectorField
from flowkern.ode import SolverWarning, Status
from flowkern.transforms import NeuralODE
from flowkern.transforms._hutchinson import noise
from tests.laws.continuous import hooked, normal, randomised

# The transform


def small(features=2, context=0, **options):
    return randomised(CNF(features, context, **{"hidden_features": (5, 5), **options}), 0.6)


def errors(transform, x, c):
    """How far a round trip misses, and the log-det the Jacobian of the steps."""
    y, logabsdet = transform(x, c)
    x_again, back = transform.inverse(y, c)
    rows = torch.autograd.functional.jacobian(lambda x: transform(x, c)[0].sum(0), x)
    exact = torch.linalg.slogdet(rows.transpose(0, 1))[1]
    return [(a - b).abs().max().item() for a, b in ((x_again, x), (back, -logabsdet), (logabsdet, exact))]


@pytest.mark.parametrize(
    "method, order",
    [("midpoint", 2), ("heun3", 3), ("bosh3", 3), ("rk4", 4), ("rk4_classic", 4), ("dopri5", 5), ("tsit5", 5)],
)
@pytest.mark.parametrize("features", [1, 3])
def test_round_trip_and_log_det_are_right_to_the_order_of_the_method(features, method, order):
    """Twice the steps take off a factor of 2^order (measured: at least 2^(order − 0.12))."""
    x, c = normal(4, features), normal(4, 2)
    coarse, fine = (errors(small(features, 2, method=method, steps=steps).transform, x, c) for steps in (16, 32))
    for a, b in zip(coarse, fine):
        assert 0 < b < a / 2 ** (order - 0.25) and a < 1e-3


@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (-0.5, 2.0)])
def test_a_linear_field_gives_a_normal_distribution(times):
    """x(t) = exp(tA) x(0), so the data are N(0, B Bᵀ) with B = exp((t_data − t_noise) A)."""
    field = randomised(VectorField(3, hidden_features=(), time=None))
    with torch.no_grad():
        field.net[0].bias.zero_()
    flow = CNF(field=field, method="dopri5", steps=60, times=times).double()
    a, x = field.net[0].weight.detach(), normal(5, 3)
    b = torch.linalg.matrix_exp((times[1] - times[0]) * a)
    wanted = MultivariateNormal(torch.zeros(3).double(), b @ b.T).log_prob(x)
    torch.testing.assert_close(flow().log_prob(x), wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.transform.inverse(x)[0], x @ b.T, rtol=1e-8, atol=1e-8)
    costs = flow().log_prob_and_costs(x)
    torch.testing.assert_close(costs.log_prob, wanted, rtol=1e-8, atol=1e-8)
    length = abs(times[1] - times[0])
    wanted = (length * a.square().sum()).expand(5)
    torch.testing.assert_close(costs.jacobian, wanted)
    path = flow.trajectory(x, torch.linspace(*reversed(times), 201).tolist())
    speeds = (path @ a.T).square().sum(-1)
    wanted = torch.trapezoid(speeds, dx=length / 200, dim=0)
    torch.testing.assert_close(costs.kinetic, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_density_of_one_feature_integrates_to_one():
    flow = small(1, 1, activation="silu", steps=8)
    x = torch.linspace(-15, 15, 2001).double().view(-1, 1, 1)
    density = flow(normal(3, 1)).log_prob(x).exp()
    torch.testing.assert_close(torch.trapezoid(density, x[..., 0], dim=0), torch.ones(3).double(), rtol=0, atol=1e-4)


@torch.no_grad()
def test_density_of_two_features_integrates_to_one_and_is_that_of_the_samples():
    distribution = small(2, activation="elu", time="fourier", steps=6, method="rk4_classic")()
    axis = torch.linspace(-12, 12, 241).double()
    points = torch.cartesian_prod(axis, axis)
    density = distribution.log_prob(points).exp() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(density.sum().item(), 1.0, rtol=0, atol=1e-3)
    samples = distribution.sample((10_000,))
    for statistic in (lambda x: x, lambda x: x.square()):
        values = statistic(samples)
        wanted = (density.unsqueeze(-1) * statistic(points)).sum(0)
        assert ((values.mean(0) - wanted).abs() < 4 * values.std(0) / 100).all()


def test_samples_need_no_log_det():
    distribution = small(2, 1)(normal(3, 1))
    torch.manual_seed(1)
    x = distribution.rsample((4,))
    torch.manual_seed(1)
    assert torch.equal(distribution.rsample_and_log_prob((4,))[0], x) and x.requires_grad
    expanded = distribution.expand((2, 3))
    assert type(expanded) is type(distribution) and expanded.sample((4,)).shape == (4, 2, 3, 2)


def gradients(flow, x, c):
    return torch.autograd.grad(flow(c).log_prob(x).sum(), [x, c, *flow.parameters()])


def test_adjoint_and_checkpoints():
    """Checkpoints change nothing; the adjoint differs from the discrete gradient by the method's error."""
    x, c = normal(4, 2).requires_grad_(), normal(4, 1).requires_grad_()
    wanted = gradients(small(2, 1, steps=8), x, c)
    torch.testing.assert_close(gradients(small(2, 1, steps=8, checkpoint=4), x, c), wanted)
    gaps = []
    for steps in (8, 16):
        wanted = gradients(small(2, 1, steps=steps), x, c)
        got = gradients(small(2, 1, steps=steps, gradient="adjoint"), x, c)
        gaps.append(max((a - b).abs().max().item() for a, b in zip(got, wanted)))
    assert 0 < gaps[1] < gaps[0] / 8 < 1e-3


def test_a_trajectory_passes_the_ends_of_the_transform():
    flow, z, c = small(2, 1, steps=10), normal(5, 2), normal(5, 1)
    t = [0.0, 0.1, 0.37, 1.0]
    path = flow.trajectory(z, t, c)
    torch.testing.assert_close(path[-1], flow.transform.inverse(z, c)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flow.trajectory(path[2], [0.37, 0.1], c)[1], path[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(path[0], z) and flow.trajectory(z, [0.2], c).shape == (1, 5, 2)
    uneven = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    wanted = flow.transform.inverse(z, c)[0]
    torch.testing.assert_close(flow.trajectory(z, uneven, c)[-1], wanted)


# Hutchinson's estimate


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
@torch.no_grad()
def test_noise_has_the_right_moments(kind):
    for seed in (None, 3):
        e = noise(kind, (20_000, 3), seed, torch.zeros(0, dtype=torch.float64))
        error = 5 / len(e) ** 0.5
        assert e.mean(0).abs().max() < error
        assert (e.T @ e / len(e) - torch.eye(3)).abs().max() < 2 * error
        kurtosis = 1 if kind == "rademacher" else 3
        assert (e**4).mean().sub(kurtosis).abs() < 10 * error


def test_noise_of_a_seed_is_the_same_in_every_dtype_and_for_every_batch():
    for kind in ("rademacher", "normal"):
        e = noise(kind, (5, 3), 7, torch.zeros(0, dtype=torch.float64))
        assert torch.equal(noise(kind, (5, 3), 7, torch.zeros(0)), e.float())
        assert torch.equal(noise(kind, (2, 3), 7, e), e[:2])
        assert not torch.equal(noise(kind, (5, 3), 8, e), e)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
@torch.no_grad()
def test_hutchinson_is_right_on_average(kind):
    x, c = normal(1, 3), normal(1, 1)
    exact = small(3, 1, steps=4)(c).log_prob(x)
    flow = small(3, 1, steps=4, trace="hutchinson", noise=kind, seed=1)
    estimates = flow(c).log_prob(x.expand(4000, 1, 3))
    error = estimates.std() / len(estimates) ** 0.5
    assert estimates.std() > 0.01 and (estimates.mean() - exact).abs() < 4 * error


def test_hutchinson_with_signs_is_exact_for_one_feature():
    x = normal(6, 1)
    wanted = small(1)().log_prob(x)
    torch.testing.assert_close(small(1, trace="hutchinson")().log_prob(x), wanted)


def test_hutchinson_draws_anew_unless_a_seed_is_given():
    x = normal(6, 3)
    flow = small(3, steps=2, trace="hutchinson")
    first = flow().log_prob(x)
    assert not torch.equal(flow().log_prob(x), first)
    torch.manual_seed(4)
    first = flow().log_prob(x)
    torch.manual_seed(4)
    assert torch.equal(flow().log_prob(x), first)
    seeded = small(3, steps=2, trace="hutchinson", seed=0)
    assert torch.equal(seeded().log_prob(x), seeded().log_prob(x))
    z, logabsdet = seeded.transform(x)
    wide = small(3, steps=20, trace="hutchinson", seed=0).transform
    there, back = wide(x), wide.inverse(wide(x)[0])
    torch.testing.assert_close(back[1], -there[1], rtol=1e-5, atol=1e-5)


# Models


def test_a_flow_matching_model_has_a_likelihood():
    """Linear paths from noise (t = 0) to N(m, s²): samples and density come out at the right end.

    With seeds 0 to 2 the divergence is at most 0.014 nats; integrated the wrong way it is over 9.
    """
    torch.manual_seed(0)
    target = Normal(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5]))
    field = VectorField(2, hidden_features=(64, 64), activation="silu")
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        t, noise, data = torch.rand(512), torch.randn(512, 2), target.sample((512,))
        x = torch.lerp(noise, data, t.unsqueeze(-1))
        loss = (field(t, x) - (data - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    flow, x = CNF(field=field, steps=12), target.sample((2000,))
    gap = target.log_prob(x).sum(-1) - flow().log_prob(x)
    assert gap.mean().abs() < 0.05
    samples = flow().sample((4000,))
    assert (samples.mean(0) - target.mean).abs().max() < 0.15
    assert (samples.std(0) - target.stddev).abs().max() < 0.15
    grads = torch.autograd.grad(flow().log_prob(x).mean(), list(field.parameters()))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


def test_failures_have_a_status():
    """A field that carries some samples out of the numbers: by option that raises, or warns, both ways."""
    x = torch.tensor([[1.0], [0.0], [1.0]])
    flows = {
        kind: CNF(1, hidden_features=(1,), activation="leaky_relu", on_failure=kind) for kind in (None, "raise", "warn")
    }
    for flow in flows.values():
        with torch.no_grad():
            for parameter in flow.parameters():  # dx/dt = 10¹² leaky_relu(x)
                parameter.fill_(1e6 if parameter.dim() == 2 else 0.0)
            flow.transform.field.net[0].weight[:, 1] = 0.0
    assert flows[None]().log_prob(x).isfinite().tolist() == [False, True, False]
    for solve in (flows["raise"]().log_prob, flows["raise"].transform.inverse, flows["raise"].transform.data):
        with pytest.raises(flowkern.SolverError, match="2 of 3 samples") as failed:
            solve(x)
        assert failed.value.status.tolist() == [Status.NON_FINITE, Status.OK, Status.NON_FINITE]
    with pytest.warns(SolverWarning, match="2 of 3 samples") as warned:
        flows["warn"]().log_prob(x)
    assert warned[0].filename == __file__
    assert flows["raise"]().log_prob(0 * x).isfinite().all()


def test_training_and_evaluation_are_the_same():
    flow, x = small(2), normal(4, 2)
    assert torch.equal(flow.eval()().log_prob(x), flow.train()().log_prob(x))
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        twin.transform.field.net[0].weight.mul_(2)
    assert not torch.allclose(twin().log_prob(x), flow().log_prob(x))


def test_autocast_leaves_it_in_float32():
    flow, x, c = small(2, 1).float(), torch.randn(50, 2), torch.randn(50, 1)
    wanted = flow(c).log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow(c).log_prob(x), wanted)
        x, c = x.bfloat16(), c.bfloat16()  # what an encoder returns there
        got = flow(c).log_prob(x)
    assert torch.equal(got, flow(c.float()).log_prob(x.float())) and got.dtype == torch.float32


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_it_has_shapes_on_the_meta_device(trace):
    """As in models that are built before their weights are there."""
    with torch.device("meta"), flowkern.backend("reference"):
        flow = CNF(2, 1, trace=trace)
        log_prob = flow(torch.zeros(3, 1)).log_prob(torch.zeros(5, 3, 2))
        assert flow(torch.zeros(3, 1)).sample((4,)).shape == (4, 3, 2)
    assert log_prob.shape == (5, 3) and log_prob.is_meta


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_log_prob_and_its_gradient_compile_to_one_graph(trace):
    flow = small(2, 1, hidden_features=(4,), method="midpoint", steps=2, trace=trace, seed=2)
    x, c = normal(3, 2), normal(3, 1)
    torch._dynamo.reset()
    got = torch.compile(lambda x, c: flow(c).log_prob(x), fullgraph=True, backend="aot_eager")(x, c)
    wanted = flow(c).log_prob(x)
    torch.testing.assert_close(got, wanted)
    got = torch.autograd.grad(got.sum(), list(flow.parameters()))
    torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), list(flow.parameters())))


class DoubledField(VectorField):
    """A field whose own forward the fused solve would not call."""

    def forward(self, t, x, context=None):
        return 2 * super().forward(t, x, context)


def hooked_field():
    field = VectorField(2)
    hooked(field.net)
    return field


FIELD = VectorField(2)
META = torch.zeros(3, 2, device="meta")
WRONG = [
    (lambda: CNF(0), ValueError, "features: expected an integer >= 1"),
    (lambda: CNF(), TypeError, "features: expected an integer, got None"),
    (lambda: CNF(2, activation="sine"), ValueError, "activation: expected one of relu, "),
    (lambda: CNF(2, time="added"), ValueError, "time: expected one of 'concatenate'"),
    (lambda: CNF(2, method="rk5"), ValueError, "method: expected one of 'euler'"),
    (lambda: CNF(2, steps=0), ValueError, "steps: expected an integer >= 1"),
    (lambda: CNF(2, steps=8, checkpoint=3), ValueError, "checkpoint: expected a divisor"),
    (lambda: CNF(2, trace="none"), ValueError, "trace: expected one of 'exact'"),
    (lambda: CNF(2, noise="uniform"), ValueError, "noise: expected one of 'rademacher'"),
    (lambda: CNF(2, gradient="none"), ValueError, "gradient: expected one of 'discrete'"),
    (lambda: CNF(2, on_failure="stop"), ValueError, "on_failure: expected one of None, 'raise'"),
    (lambda: CNF(2, seed="a"), TypeError, "seed: expected an integer"),
    (lambda: CNF(2, seed=2**63), ValueError, "seed: expected an integer below 2"),
    (lambda: CNF(field=DoubledField(2))().sample(), TypeError, "field: has a forward of its own"),
    (lambda: CNF(field=hooked_field())().sample(), TypeError, "field: has hooks"),
    (lambda: CNF(2, times=(1.0, 1.0)), ValueError, "times: expected two different"),
    (lambda: CNF(2).trajectory(torch.zeros(3, 2), [0.0, math.nan]), ValueError, "t: expected finite times"),
    (lambda: CNF(2).trajectory(torch.zeros(3, 2), []), ValueError, "t: expected finite times, at least one"),
    (lambda: CNF(2, times=1.0), ValueError, r"times: expected two numbers \(t_noise"),
    (lambda: NeuralODE(nn.Linear(2, 2)), TypeError, "field: expected a module with layers"),
    (lambda: CNF(field=FIELD)().log_prob(torch.zeros(4, 2).double()), TypeError, "x: expected dtype"),
    (lambda: CNF(2, 1)(torch.zeros(3, 1)).log_prob(torch.zeros(4, 2)), ValueError, "batch shape"),
    (lambda: CNF(2)().log_prob(META), ValueError, "x: expected device cpu as the parameters have, got meta"),
    (lambda: CNF(2).to("meta")().log_prob(torch.zeros(3, 2)), ValueError, "x: expected device meta"),
    (lambda: CNF(2, 2)(META).log_prob(torch.zeros(3, 2)), ValueError, "context: expected device cpu"),
    (lambda: CNF(2).trajectory(META, [0.0, 1.0]), ValueError, "x: expected device cpu"),
]


@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_noise_has_the_dtype_of_the_field():
    flow = CNF(field=VectorField(2).double())
    x, log_prob = flow().rsample_and_log_prob((3,))
    assert x.dtype == log_prob.dtype == torch.float64

"""Laws of flows and of the distributions that they return, in float64 unless said."""

import copy
import pickle
from functools import partial

import pytest
import torch
from sklearn.datasets import make_moons
from torch import distributions
from torch.distributions import MultivariateNormal, constraints

from flowkern.flows import CNF, IAF, MAF, NICE, NSF, AutoregressiveNSF, Flow, RealNVP
from flowkern.nn import MADE, ResidualNet
from flowkern.transforms import LULinear

SMALL = {"transforms": 2, "hidden_features": (6,)}
FLOWS = {
    "nice": lambda d, c=0: NICE(d, c, **SMALL),
    "realnvp": lambda d, c=0: RealNVP(d, c, **SMALL),
    "realnvp_lu": lambda d, c=0: RealNVP(d, c, mixing="lu", actnorm=True, **SMALL),
    "nsf": lambda d, c=0: NSF(d, c, bins=4, mixing="permutation", **SMALL),
    "residual": lambda d, c=0: RealNVP(d, c, conditioner=ResidualNet, **SMALL),
    "maf": lambda d, c=0: MAF(d, c, conditioner=partial(MADE, activation="tanh"), **SMALL),
    "iaf": lambda d, c=0: IAF(d, c, randperm=True, **SMALL),
    "autoregressive_nsf": lambda d, c=0: AutoregressiveNSF(d, c, bins=4, passes=2, **SMALL),
    "cnf": lambda d, c=0: CNF(d, c, hidden_features=(6,), method="dopri5", steps=6),
}
COUPLING = ("nice", "realnvp", "realnvp_lu", "nsf", "residual")


def build(name, features=2, context=0, spread=0.3):
    """A flow in float64 and evaluation mode, with random parameters."""
    torch.manual_seed(0)
    flow = FLOWS[name](features, context).double().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_and_samples_agree(name, features, context):
    distribution = build(name, features, context)(normal(4, context) if context else None)
    batch = (4,) if context else ()
    assert distribution.batch_shape == batch and distribution.event_shape == (features,)
    x, log_prob = distribution.rsample_and_log_prob((5,))
    assert x.shape == (5, *batch, features) and log_prob.shape == (5, *batch)
    torch.testing.assert_close(log_prob, distribution.log_prob(x))
    torch.manual_seed(3)
    reparameterised = distribution.rsample((5,))
    torch.manual_seed(3)
    sample = distribution.sample((5,))
    # A context's term is summed in the kernel without gradients, by torch with them: rounded otherwise.
    torch.testing.assert_close(sample, reparameterised.detach(), **({} if context else {"rtol": 0, "atol": 0}))
    assert not sample.requires_grad
    assert reparameterised.requires_grad


@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_is_the_change_of_variables(name):
    flow, x = build(name, 3), normal(3)
    noise, _ = flow.transform(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.transform(x)[0], x)
    base = distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    torch.testing.assert_close(flow().log_prob(x), base + torch.linalg.slogdet(jacobian)[1])


@pytest.fixture(scope="module")
def grid():
    axis = torch.linspace(-15, 15, 501, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("name", ["nice", "realnvp_lu", "nsf", "maf", "iaf"])
@torch.no_grad()
def test_density_integrates_to_one_and_is_that_of_the_samples(name, grid):
    points, area = grid
    distribution = build(name, spread=0.2)()
    density = distribution.log_prob(points).exp() * area
    torch.testing.assert_close(density.sum(), torch.ones_like(area), rtol=0, atol=1e-4)
    samples = distribution.sample((20_000,))
    for statistic in (lambda x: x, lambda x: x.square(), lambda x: (x[:, :1] * x[:, 1:]).cos()):
        values = statistic(samples)
        exact = (density.unsqueeze(-1) * statistic(points)).sum(0)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_to_parameters_and_context(name, features):
    flow = build(name, features, 1)
    names, values = zip(*flow.named_parameters())

    def log_prob(x, c, *values):
        parameters = {f"flow.{name}": value for name, value in zip(names, values)}
        return torch.func.functional_call(_LogProb(flow), parameters, (x, c))

    leaves = (normal(2, features), normal(2, 1), *values)
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(log_prob, leaves)


class _LogProb(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context=None):
        return self.flow(context).log_prob(x)


@pytest.mark.parametrize("name", FLOWS)
def test_context_broadcasts(name):
    flow, x, c = build(name, 3, 2), normal(5, 1, 3), normal(4, 2)
    wide = flow(c.expand(5, 4, 2)).log_prob(x.expand(5, 4, 3))
    torch.testing.assert_close(flow(c).log_prob(x), wide)
    torch.testing.assert_close(flow(c[0]).log_prob(x), wide[:, :1])
    assert flow(c).log_prob(x[0, 0]).shape == (4,)


@pytest.mark.parametrize("name", FLOWS)
def test_empty_batches(name):
    flow = build(name, 2, 1)
    assert flow(normal(3, 1)).log_prob(normal(0, 3, 2)).shape == (0, 3)
    x, log_prob = flow(normal(0, 1)).rsample_and_log_prob((2,))
    assert x.shape == (2, 0, 2) and log_prob.shape == (2, 0)


def test_expand():
    flow, x = build("realnvp", 2, 1), normal(4, 3, 2)
    distribution = flow(normal(3, 1))
    expanded = distribution.expand((4, 3))
    assert expanded.batch_shape == (4, 3) and expanded.rsample((5,)).shape == (5, 4, 3, 2)
    assert torch.equal(expanded.log_prob(x), distribution.log_prob(x))
    assert expanded.log_prob(x[0]).shape == (4, 3)
    with pytest.raises(ValueError, match="batch_shape: cannot expand"):
        distribution.expand((1,))


def test_a_transform_without_context_still_fills_the_batch():
    distribution = Flow(LULinear(2), 2, context=1).double()(normal(3, 1))
    assert distribution.log_prob(normal(2)).shape == (3,)


def test_torch_distributions_take_it():
    flow, x = build("realnvp", 2, 1), normal(5, 3, 2)
    distribution = flow(normal(3, 1))
    assert isinstance(distribution, distributions.Distribution) and distribution.has_rsample
    assert distribution.support is constraints.real_vector and distribution.arg_constraints == {}
    plain = distribution.log_prob(x)
    independent = distributions.Independent(distribution, 1)
    torch.testing.assert_close(independent.log_prob(x), plain.sum(-1))
    scaled = distributions.TransformedDistribution(distribution, [distributions.AffineTransform(1.0, 2.0, event_dim=1)])
    wanted = plain - 2 * torch.tensor(2.0).log()
    torch.testing.assert_close(scaled.log_prob(2 * x + 1), wanted)
    assert scaled.rsample((7,)).shape == (7, 3, 2)
    weights = distributions.Categorical(logits=normal(3))
    mixture = distributions.MixtureSameFamily(weights, distribution)
    wanted = torch.logsumexp(weights.logits + distribution.log_prob(x[:, :1]), -1)
    torch.testing.assert_close(mixture.log_prob(x[:, 0]), wanted)


@pytest.mark.parametrize("name", FLOWS)
def test_new_flow_is_the_standard_normal(name):
    x = normal(4, 3)
    wanted = distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(FLOWS[name](3).double().eval()().log_prob(x), wanted)


@pytest.mark.parametrize("name", FLOWS)
def test_copies_are_equal(name):
    flow, x = build(name, 3), normal(4, 3)
    wanted = flow().log_prob(x)
    torch.manual_seed(9)
    loaded = FLOWS[name](3).double().eval()
    loaded.load_state_dict(flow.state_dict())
    for other in (loaded, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other().log_prob(x), wanted)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_made_on_meta_takes_loaded_numbers(name, features):
    flow, x = build(name, features), normal(4, features)
    with torch.device("meta"):
        made = FLOWS[name](features).double().eval()
    moved = FLOWS[name](features).double().eval().to("meta")
    for other in (made, moved):
        assert repr(other)
        other.to_empty(device="cpu").load_state_dict(flow.state_dict())
        assert torch.equal(other().log_prob(x), flow().log_prob(x))
        assert other().sample((2,)).shape == (2, features)


class LogProb(torch.nn.Module):
    """A flow's log-density as a module, which `functional_call` can call."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)


@pytest.mark.parametrize("name", FLOWS)
def test_an_ensemble_by_vmap_over_stacked_states(name):
    """PyTorch's recipe stacks buffers, too, such as the indices of coupling layers."""
    members = [LogProb(build(name, 3, spread=0.1 * (i + 1))) for i in range(3)]
    states, x = torch.func.stack_module_state(members), normal(5, 3)
    base = copy.deepcopy(members[0])

    def log_prob(*state):
        return torch.func.functional_call(base, state, (x,))

    got = torch.vmap(log_prob)(*states)
    torch.testing.assert_close(got, torch.stack([member(x) for member in members]))
    grads = torch.vmap(torch.func.grad(lambda *state: log_prob(*state).sum()))(*states)
    for i, member in enumerate(members):
        wanted = torch.autograd.grad(member(x).sum(), list(member.parameters()))
        torch.testing.assert_close([grad[i] for grad in grads.values()], list(wanted))


def test_averaged_models_are_the_flow():
    """The average is of a flow before ActNorm's first batch, or of another order."""
    torch.manual_seed(0)
    for make in (partial(RealNVP, actnorm=True), partial(MAF, randperm=True)):
        flow, averaged = make(3, **SMALL), torch.optim.swa_utils.AveragedModel(make(3, **SMALL))
        flow().log_prob(torch.randn(100, 3) * 5 + 2)
        averaged().log_prob(torch.randn(1, 3))
        averaged.update_parameters(flow)
        x = torch.randn(50, 3)
        assert torch.equal(averaged().log_prob(x), flow().log_prob(x))


def compiled(function, *inputs):
    """One graph of the function, its gradients included, run on the inputs."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)


def test_training_compiles_to_one_graph():
    """The first batch initialises ActNorm inside the graph."""
    flow, c, x = build("realnvp_lu", 3, 2).train(), normal(4, 2), normal(5, 4, 3)
    eager = copy.deepcopy(flow)
    got = compiled(lambda x, c: flow(c).log_prob(x), x, c)
    wanted = eager(c).log_prob(x)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(flow.state_dict(), eager.state_dict())
    got = torch.autograd.grad(got.sum(), list(flow.parameters()))
    torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), list(eager.parameters())))


@torch.no_grad()
def test_a_loaded_flow_compiles_to_one_graph():
    flow, x = build("iaf", 3), normal(4, 3)
    loaded = FLOWS["iaf"](3).double()
    loaded.load_state_dict(flow.state_dict())
    torch.testing.assert_close(compiled(lambda x: loaded().log_prob(x), x), flow().log_prob(x))


@pytest.mark.parametrize("name", ["nice", "nsf", "maf", "iaf"])
@torch.no_grad()
def test_evaluation_compiles_to_one_graph(name):
    flow, c, x = build(name, 3, 2), normal(4, 2), normal(5, 4, 3)
    got = compiled(lambda x, c: flow(c).log_prob(x), x, c)
    torch.testing.assert_close(got, flow(c).log_prob(x))
    sample, log_prob = compiled(lambda c: flow(c).rsample_and_log_prob((6,)), c)
    torch.testing.assert_close(flow(c).log_prob(sample), log_prob)


@pytest.mark.parametrize("name", COUPLING)
def test_autocast_lowers_the_conditioners_alone(name):
    flow, x = build(name, 3, spread=0.05).float(), normal(50, 3).float()
    exact = flow().log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = flow().log_prob(x)
        sample, sample_log_prob = flow().rsample_and_log_prob((5,))
    assert {log_prob.dtype, sample.dtype, sample_log_prob.dtype} == {torch.float32}
    assert not torch.equal(log_prob, exact)
    torch.testing.assert_close(log_prob, exact, rtol=0, atol=0.05)


def test_autocast_leaves_masked_conditioners_in_float32():
    flow, x = build("maf", 3).float(), normal(50, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow().log_prob(x), flow().log_prob(x)) and flow().sample().dtype == x.dtype


def test_orders_of_autoregressive_layers():
    def orders(**options):
        return [layer.conditioner.order.tolist() for layer in MAF(5, **options).transform.transforms]

    assert orders(transforms=3) == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]
    assert orders(transforms=2, passes=2) == [[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]
    assert orders(transforms=1, passes=9) == [[0, 1, 2, 3, 4]]
    random = orders(randperm=True)
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in random) and random[0] != random[1]


def test_a_nan_stays_in_its_row():
    flow, x = build("nsf", 3), normal(4, 3)
    wanted = flow().log_prob(x)
    x[1, 2] = torch.nan
    got = flow().log_prob(x)
    assert got[1].isnan() and torch.equal(got[[0, 2, 3]], wanted[[0, 2, 3]])


@pytest.mark.parametrize("flow_type", [RealNVP, NSF])
def test_two_moons_can_be_learnt(flow_type):
    """Of the gap between a fitted Gaussian and the truth (1.88 and 0.29 nats), over half is closed.

    With seeds 0 to 7 on every backend: at most 0.73 nats (RealNVP) and 0.35 (NSF).
    """
    points = torch.tensor(make_moons(22_000, noise=0.05, random_state=0)[0]).float()
    train, test = points.split((20_000, 2000))
    gaussian = MultivariateNormal(train.mean(0), train.T.cov())
    flow = flow_type(2, transforms=4, hidden_features=(32, 32), mixing="lu", actnorm=True)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        loss = -flow().log_prob(train[torch.randint(len(train), (256,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    learnt, fitted = (-p.log_prob(test).mean() for p in (flow(), gaussian))
    assert learnt < (fitted + 0.29) / 2


X = torch.zeros(4, 2)
WRONG = [
    (lambda: RealNVP(0), ValueError, "features: expected an integer >= 1"),
    (lambda: RealNVP(2, transforms=0), ValueError, "transforms: expected an integer >= 1"),
    (lambda: RealNVP(2, mixing="rotation"), ValueError, "mixing: expected None, 'permutation'"),
    (lambda: NSF(2, bins=0), ValueError, "bins: expected an integer >= 1"),
    (lambda: MAF(2, passes=0), ValueError, "passes: expected an integer >= 1"),
    (lambda: AutoregressiveNSF(2, bins=0), ValueError, "bins: expected an integer >= 1"),
    (lambda: NSF(2, bound=-1.0), ValueError, "bound: expected a finite number > 0"),
    (lambda: NICE(2)(X), ValueError, "context: expected None"),
    (lambda: NICE(2, 1)(), ValueError, "context: expected a tensor"),
    (lambda: NICE(2, 1)(X), ValueError, r"context: expected shape \(…, 1\)"),
    (lambda: NICE(2)().log_prob(X[:, :1]), ValueError, r"value: expected shape \(…, 2\)"),
    (lambda: NICE(2)().log_prob(X.long()), TypeError, "value: expected a floating-point"),
    (lambda: NICE(2)().log_prob(X.double()), TypeError, "x: expected dtype torch.float32"),
    (lambda: NICE(2, 2)(X.double()).log_prob(X), TypeError, "context: expected dtype"),
    (lambda: NICE(2, 2)(X[:3]).log_prob(X), ValueError, r"value: batch shape \(4,\) does not"),
]


@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

"""Samplers of flow_matching and torchdyn: their numbers, steps in place of adaptive ones, what is left."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import flowkern
from flowkern.flows import CNF
from flowkern.nn import VectorField
from tests.adapters.samplers import (
    MLP,
    NeuralODE,
    ODESolver,
    Swish,
    Velocity,
    Wrapped,
    torch_wrapper,
)

ODE = {"method": "dopri5", "steps": 12}
TIMES = torch.linspace(0, 1, 8, dtype=torch.float64)
TIGHT = {"method": "dopri5", "atol": 1e-9, "rtol": 1e-9}


def solver(model=None, dtype=torch.float64):
    torch.manual_seed(0)
    return ODESolver(Wrapped(Velocity()) if model is None else model).to(dtype)


def node(vector_field=None, **options):
    torch.manual_seed(0)
    vector_field = torch_wrapper(MLP(2, activation=nn.Tanh)) if vector_field is None else vector_field
    return NeuralODE(vector_field.double(), **{"solver": "dopri5", "atol": 1e-9, "rtol": 1e-9, **options})


def fast(model, ode=None):
    return flowkern.accelerate(model, ode=ode)


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def log_p0(x):
    return -x.square().sum(-1)


def note(model):
    explained = flowkern.explain(model)
    return (*explained.replaced, *explained.replaceable, *explained.left)[0].note


# flow_matching: steps that a call names


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "rk4"])
@pytest.mark.parametrize("step_size", [None, 0.05, 0.3])
def test_fixed_steps_keep_their_numbers(method, step_size):
    """Also between the steps, and backwards."""
    plain, x = solver(), points(9, 2)
    accelerated = fast(copy.deepcopy(plain))
    for times, states in itertools.product((TIMES, TIMES.flip(0), TIMES[[0, -1]]), (False, True)):
        call = dict(method=method, time_grid=times, return_intermediates=states)
        got, wanted = (s.sample(x, step_size, **call) for s in (accelerated, plain))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
        assert not got.requires_grad
    call = dict(step_size=step_size, method=method, exact_divergence=True)
    got, wanted = (s.compute_likelihood(x, log_p0, **call) for s in (accelerated, plain))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_estimates_draw_the_noise_of_flow_matching():
    """In float32, which is all that its estimate takes."""
    plain, x, results = solver(dtype=torch.float32), torch.randn(9, 2), []
    for s in (fast(copy.deepcopy(plain)), plain):
        torch.manual_seed(1)
        call = dict(step_size=0.1, return_intermediates=True, time_grid=TIMES.flip(0))
        results.append(s.compute_likelihood(x, log_p0, **call))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_samples_have_gradients_if_asked_for():
    plain, x = solver(), points(5, 2).requires_grad_()
    accelerated = fast(copy.deepcopy(plain))
    grads = []
    for s in (accelerated, plain):
        call = dict(time_grid=TIMES, return_intermediates=True, enable_grad=True)
        y = s.sample(x, 0.1, method="midpoint", **call)
        grads.append(torch.autograd.grad(y.sin().sum(), [x, *s.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_likelihoods_have_the_right_gradients():
    """Those of flowkern's own flow of the network, and of differences; flow_matching 1.0.10 has none."""
    accelerated, x = fast(solver()), points(4, 2).requires_grad_()
    call = dict(step_size=0.25, method="rk4", exact_divergence=True, enable_grad=True)

    def log_prob(x):
        return accelerated.compute_likelihood(x, lambda z: -0.5 * z.square().sum(-1), **call)[1]

    net = accelerated.velocity_model.model.main
    swish = nn.Sequential(*(nn.SiLU() if isinstance(part, Swish) else part for part in net))
    flow = CNF(field=VectorField.of(swish), steps=4)
    leaves = [x, *net.parameters()]
    grads = [torch.autograd.grad(f(x).sum(), leaves) for f in (log_prob, lambda x: flow().log_prob(x))]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(log_prob, x)


# flow_matching: adaptive methods


def test_adaptive_methods_are_left_unless_steps_are_named():
    plain, x = solver(), points(9, 2)
    accelerated = fast(copy.deepcopy(plain))
    assert torch.equal(accelerated.sample(x, None, **TIGHT), plain.sample(x, None, **TIGHT))
    assert note(accelerated).endswith("adaptive methods run in torchdiffeq, because no ode=… was given")


@pytest.mark.parametrize("times", [TIMES[[0, -1]], TIMES, TIMES.flip(0)])
def test_named_steps_take_the_place_of_adaptive_ones(times):
    plain, x = solver(), points(9, 2)
    accelerated = fast(copy.deepcopy(plain), ODE)
    call = dict(time_grid=times, return_intermediates=True, **TIGHT)
    got, wanted = (s.sample(x, None, **call) for s in (accelerated, plain))
    assert got.shape == (len(times), 9, 2)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
    assert not torch.equal(got[-1], wanted[-1])
    assert note(accelerated).endswith("fixed steps in place of its own: method dopri5, steps 12")
    call = dict(exact_divergence=True, **TIGHT)
    got, wanted = (s.compute_likelihood(x, log_p0, None, **call) for s in (accelerated, plain))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_other_steps_take_the_place_of_named_ones():
    x, call = points(5, 2), dict(method="dopri5", time_grid=TIMES)
    accelerated = fast(fast(fast(solver()), {"steps": 1}), {"method": "euler", "steps": 12})
    assert note(accelerated).endswith("method euler, steps 12")
    wanted = fast(solver(), {"method": "euler", "steps": 12})
    assert torch.equal(accelerated.sample(x, None, **call), wanted.sample(x, None, **call))


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_failures_can_raise(method):
    accelerated, x = fast(solver(), {**ODE, "on_failure": "raise"}), points(5, 2)
    x[1] = torch.nan
    with pytest.raises(flowkern.SolverError, match="1 of 5 samples"):
        accelerated.sample(x, None, method=method)


def test_steps_of_a_whole_solve_are_divided_among_its_times():
    """7 intervals, of which none may be longer than a twelfth: two steps in each, 14 steps in all."""
    x = points(5, 2)
    accelerated = fast(solver(), {"method": "euler", "steps": 12, "checkpoint": 4})
    got = accelerated.sample(x, None, method="dopri5", time_grid=TIMES)
    wanted = solver().sample(x, None, method="euler", time_grid=torch.linspace(0, 1, 15).double())
    torch.testing.assert_close(got, wanted)


# torchdyn


@pytest.mark.parametrize("times", [TIMES, TIMES.flip(0)])
def test_trajectories_of_torchdyn(times):
    """A tight adaptive solve, by `trajectory` and by calling the module."""
    x, plain = points(6, 2), node()
    wanted = plain.trajectory(x, times)
    called = plain(x, times)[1]
    accelerated = fast(plain, ODE)
    torch.testing.assert_close(accelerated.trajectory(x, times), wanted, rtol=1e-6, atol=1e-7)
    t, got = accelerated(x, times)
    torch.testing.assert_close(got, called, rtol=1e-6, atol=1e-7)
    assert torch.equal(t, times)
    accelerated.return_t_eval = False
    assert accelerated(x).shape == (2, 6, 2)
    loss = accelerated(x).square().sum()
    assert all(grad.any() for grad in torch.autograd.grad(loss, list(accelerated.parameters())))


def test_steps_that_are_better_than_those_of_torchdyn():
    """With torchcfm's network and tolerances: the kinks of SELU cost both of them some order."""
    model = fast(node(torch_wrapper(MLP(2)), atol=1e-4, rtol=1e-4), {"method": "rk4", "steps": 64})
    error = flowkern.ode_error(model, points(50, 2), TIMES)
    assert 0 < error.y < error.own_y < 1e-2


def test_torchdyn_is_left_unless_asked_for():
    model = node()
    with pytest.warns(UserWarning, match="model is unchanged"):
        fast(model)
    assert "accelerate(model, ode={'method': 'rk4', 'steps': 32})" in note(model)
    fast(model, {"steps": 4})
    assert note(model) == "trajectory, forward; fixed steps in place of its own: steps 4"
    assert not flowkern.explain(flowkern.restore(model)).replaced


def test_calls_that_torchdyn_computes():
    x, model = points(6, 2), node(atol=1e-6, rtol=1e-6)
    fast(model, {"method": "euler", "steps": 1})
    coarse = model(x, TIMES[[0, -1]])[1]
    exact = type(model).trajectory(model, x, TIMES[[0, -1]])
    assert not torch.allclose(coarse, exact, rtol=1e-3, atol=1e-3)
    handle = model.vf.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(model(x, TIMES[[0, -1]])[1], exact)
    assert note(model).endswith("at present computed by its own code: its network has hooks")
    handle.remove()
    assert torch.equal(model(x, TIMES[[0, -1]])[1], coarse)


# Both


def test_the_error_of_the_steps_is_measured():
    """It falls with the order of the method, and that of the adaptive solve is within its tolerance."""
    x, errors = points(50, 2), []
    for steps in (4, 8):
        accelerated = fast(solver(), {"method": "midpoint", "steps": steps})
        errors.append(flowkern.ode_error(accelerated, x))
    coarse, fine = errors
    assert 0 < fine.y < coarse.y / 3 < 1e-2 and 0 < fine.logabsdet < coarse.logabsdet / 3 < 1e-2
    assert 0 < fine.own_y < 1e-4 and 0 < fine.own_logabsdet < 1e-4
    tight = solver().compute_likelihood(x, log_p0, None, exact_divergence=True, **TIGHT)[0]
    gap = accelerated.compute_likelihood(x, log_p0, None, "dopri5", exact_divergence=True)[0] - tight
    assert gap.abs().max().item() == pytest.approx(fine.y, rel=1e-3)
    error = flowkern.ode_error(fast(node(), {"method": "midpoint", "steps": 8}), x, TIMES)
    assert error.own_y < 1e-6 < error.y < 1e-2
    assert error.logabsdet is None and error.own_logabsdet is None
    for model in (fast(solver()), node(), torch.nn.Linear(2, 2), None):
        with pytest.raises(ValueError, match=r"^model: expected one accelerated by accelerate\("):
            flowkern.ode_error(model, x)


def test_parameters_and_copies_stay_their_own():
    plain, x = solver(), points(5, 2)
    accelerated = fast(copy.deepcopy(plain))
    assert accelerated.state_dict().keys() == plain.state_dict().keys()
    before = accelerated.sample(x, 0.1)
    twin = copy.deepcopy(accelerated)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(accelerated.sample(x, 0.1), before)
    plain.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin.sample(x, 0.1), plain.sample(x, 0.1))
    known = vars(twin)["sample"].args[0]
    assert pickle.loads(pickle.dumps(known)).field == known.field
    assert torch.equal(flowkern.restore(twin).sample(x, 0.1), plain.sample(x, 0.1))


def test_calls_that_flow_matching_computes():
    """Extra arguments, other methods and shapes; and its own errors."""
    plain, x = solver(), points(5, 2)
    accelerated = fast(copy.deepcopy(plain), ODE)
    for call in (dict(shift=1.0), dict(method="heun3"), dict(x_init=points(2, 3, 2))):
        call = dict(x_init=x, step_size=0.1) | call
        assert torch.equal(accelerated.sample(**call), plain.sample(**call))
    bad = dict(time_grid=torch.tensor([0.0, 1.0]), step_size=0.1)
    with pytest.raises(AssertionError, match="must start at 1.0"):
        accelerated.compute_likelihood(x, log_p0, **bad)
    with pytest.raises(AssertionError, match="strictly increasing or decreasing"):
        accelerated.sample(x, 0.1, time_grid=torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(RuntimeError, match=r"shape '\[-1, 2\]' is invalid"):
        accelerated.sample(points(5, 3), 0.1)


# What is recognised, and what is left


class TimeFirst(Velocity):
    def forward(self, x, t):
        return self.main(torch.cat([t.expand(len(x), 1), x], 1))


class Steady(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x, t):
        return self.net(x)


class Repeated(Steady):
    """t repeated by a product with ones."""

    def __init__(self):
        super().__init__()
        self.net[0] = nn.Linear(3, 8)

    def forward(self, x, t):
        return self.net(torch.cat([x, t * torch.ones_like(x[:, :1])], 1))


@pytest.mark.parametrize("model", [TimeFirst, Steady, Repeated, lambda: Velocity(1), lambda: Velocity(3, nn.ELU)])
def test_networks_that_are_recognised(model):
    plain = solver(model())
    x = points(5, list(plain.parameters())[-1].shape[0])
    got = fast(copy.deepcopy(plain)).sample(x, 0.1, method="rk4")
    torch.testing.assert_close(got, plain.sample(x, 0.1, method="rk4"))


class Doubled(Velocity):
    def forward(self, x, t):
        return 2 * super().forward(x, t)


class Thinned(Velocity):
    def forward(self, x, t):
        return super().forward(nn.functional.dropout(x, 0.5, self.training), t)


class Angles(Velocity):
    def forward(self, x, t):
        return super().forward(torch.remainder(x + torch.pi, 2 * torch.pi) - torch.pi, t)


class Bounded(Velocity):
    def forward(self, x, t):
        return super().forward(x.clamp(-100, 100), t)


class Stopping(Velocity):
    def forward(self, x, t):
        return super().forward(x, t) if t < 0.95 else torch.zeros_like(x)


class Scaled(Velocity):
    factor = 1.0

    def forward(self, x, t):
        return self.factor * super().forward(x, t)


class Sharp(Swish):
    def __init__(self):
        super().__init__()
        self.beta = 1.0

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Dropped(nn.Module):
    def forward(self, x):
        return nn.functional.silu(nn.functional.dropout(x, 0.5, self.training))


class Own(ODESolver):
    def sample(self, *arguments, **options):
        return 2 * super().sample(*arguments, **options)


def with_norm(model):
    model.norm = nn.BatchNorm1d(2)
    return model


LEFT = {
    "its velocity model computes more than its nn.Sequential: mul": lambda: solver(Doubled()),
    "more than its nn.Sequential: bernoulli_": lambda: solver(Thinned()),
    "more than its nn.Sequential: add, remainder, sub": lambda: solver(Angles()),
    "more than its nn.Sequential: clamp": lambda: solver(Bounded()),
    "more than its nn.Sequential: _local_scalar_dense, lt": lambda: solver(Stopping()),
    "more than its nn.Sequential": lambda: solver(Scaled()),
    "got Sharp()": lambda: solver(Velocity(activation=Sharp)),
    "its network is not known: net: expected linear layers": lambda: solver(Velocity(activation=nn.Mish)),
    "got Dropped()": lambda: solver(Velocity(activation=Dropped)),
    "its velocity model is no single nn.Sequential": lambda: solver(with_norm(Velocity())),
    "its velocity model is no single": lambda: solver(nn.Bilinear(2, 1, 2)),
    "its velocity model is no torch.nn.Module": lambda: ODESolver(lambda x, t: x),
    "its network has other inputs than x and t": lambda: solver(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    ),
    "Own overrides sample": lambda: Own(Velocity()),
}


@pytest.mark.parametrize("reason", LEFT)
def test_left_as_it_is(reason):
    model = LEFT[reason]()
    with pytest.warns(UserWarning, match="model is unchanged"):
        fast(model, ODE)
    assert reason in note(model)


def test_an_integral_loss_is_left_to_torchdyn():
    model = fast(node(), ODE)
    model.integral_loss = lambda t, x: x
    assert note(model).endswith("it has an order above 1 or an integral loss")

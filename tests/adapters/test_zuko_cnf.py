"""zuko's continuous flows by fixed steps: asked for, equal to the adaptive solve, and left if unknown."""

import copy
import pickle
import warnings

import pytest
import torch
import zuko
import zuko.bayesian
from torch import nn
from zuko.flows import CNF

import flowkern

# Of smooth fields: at the kinks of elu's slope the adaptive solver takes thousands of steps.
TIGHT = {"atol": 1e-9, "rtol": 1e-8}
FINE = {"method": "dopri5", "steps": 40}
MODELS = {
    "context": lambda **o: CNF(3, 2, hidden_features=(8, 6), activation=nn.Tanh, **o),
    "no context": lambda **o: CNF(3, hidden_features=(8, 6), activation=nn.GELU, **o),
    "one feature": lambda **o: CNF(1, 2, hidden_features=(5,), freqs=1, activation=nn.SiLU, **o),
    "three layers": lambda **o: CNF(2, 1, hidden_features=(4, 4, 4), freqs=5, activation=nn.Softplus, **o),
    "no hidden layer": lambda **o: CNF(2, 2, hidden_features=(), **o),
}


def build(name="context", dtype=torch.float64, **options):
    torch.manual_seed(0)
    flow = MODELS[name](**{**TIGHT, **options}).to(dtype)
    features = flow.transform.ode[-1].weight.shape[0]
    context = flow.transform.ode[0].weight.shape[1] - features - 2 * len(flow.transform.freqs)
    x = torch.randn(5, 4, features, dtype=dtype)
    return flow, x, torch.randn(4, context, dtype=dtype) if context else None


def fixed(flow, **options):
    return flowkern.accelerate(copy.deepcopy(flow), ode={**FINE, **options})


def note(model):
    return (*flowkern.explain(model).replaced, *flowkern.explain(model).left)[0].note


def evaluate(flow, x, c):
    """Values in both directions and the gradients of a mixture of them."""
    x = x.detach().requires_grad_()
    c = None if c is None else c.detach().requires_grad_()
    transform = flow(c).transform
    y, ladj = transform.call_and_ladj(x)
    back, back_ladj = transform.inv.call_and_ladj(x)
    values = [y, ladj, back, back_ladj, transform(x), transform.inv(x)]
    total = sum((value * (i + value.sin())).sum() for i, value in enumerate(values))
    leaves = [leaf for leaf in (x, c, *flow.parameters()) if leaf is not None]
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [value.detach() for value in values], list(grads)


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_a_tight_adaptive_solve(name):
    flow, x, c = build(name)
    values, grads = evaluate(fixed(flow), x, c)
    wanted, wanted_grads = evaluate(flow, x, c)
    torch.testing.assert_close(values, wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grads, wanted_grads, rtol=1e-6, atol=1e-6)


def test_elu_of_zuko_by_default():
    """With the tolerance that its kinks allow."""
    torch.manual_seed(0)
    flow, x = CNF(2, hidden_features=(8, 8), atol=1e-7, rtol=1e-6).double(), torch.randn(9, 2).double()
    got = fixed(flow, steps=100)().log_prob(x)
    torch.testing.assert_close(got, flow().log_prob(x), rtol=1e-4, atol=1e-4)


def test_distributions_are_those_of_zuko():
    flow, x, c = build()
    fast = fixed(flow)
    torch.testing.assert_close(fast(c).log_prob(x), flow(c).log_prob(x), rtol=1e-6, atol=1e-7)
    results = []
    for model in (fast, flow):
        torch.manual_seed(2)
        results.append([model(c).sample((3,)), *model(c).rsample_and_log_prob((3,))])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
    s, t = fast(c).transform, flow(c).transform
    assert isinstance(s, zuko.transforms.FreeFormJacobianTransform) and s.exact == t.exact
    assert (s.domain, s.codomain, s.bijective) == (t.domain, t.codomain, t.bijective)
    assert type(s.inv.inv) is type(s) and (s.inv.t0, s.inv.t1) == (s.t1, s.t0)
    torch.testing.assert_close(s.log_abs_det_jacobian(x, s(x)), s.call_and_ladj(x)[1])


def test_estimates_of_the_trace_draw_the_noise_of_zuko():
    flow, x, _ = build("no context", exact=False)
    results = []
    for model in (fixed(flow), flow):
        torch.manual_seed(3)
        results.append(model().log_prob(x))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_parameters_have_gradients_in_training_alone_as_in_zuko():
    flow, x, c = build()
    for model in (flow, fixed(flow)):
        model.eval()
        log_prob = model(c.requires_grad_()).log_prob(x)
        grads = torch.autograd.grad(log_prob.sum(), [c, *model.parameters()], allow_unused=True)
        assert grads[0] is not None and not any(grad is not None for grad in grads[1:])


def test_it_is_left_unless_asked_for():
    flow = build()[0]
    with pytest.warns(UserWarning, match="model is unchanged"):
        flowkern.accelerate(flow)
    assert "accelerate(model, ode={'method': 'rk4', 'steps': 32})" in note(flow)
    flowkern.accelerate(flow, ode={"steps": 4})
    assert note(flow) == "forward; fixed steps in place of its own: steps 4"
    flowkern.restore(flow)
    assert not flowkern.explain(flow).replaced


def test_failures_can_raise():
    flow, x, c = build()
    x[1] = torch.inf
    fixed(flow)(c).log_prob(x)
    with pytest.raises(flowkern.SolverError, match="4 of 20 samples: the state or its derivative"):
        fixed(flow, on_failure="raise")(c).log_prob(x)


def test_ode_leaves_other_layers_as_they_were():
    model = nn.ModuleList([zuko.flows.MAF(3, transforms=2), build()[0]])
    flowkern.accelerate(model, ode=FINE)
    assert [layer.kind for layer in flowkern.explain(model).replaced] == [
        "MAF", "LazyComposedTransform", "MaskedAutoregressiveTransform", "MaskedAutoregressiveTransform",
        "FFJTransform",
    ]  # fmt: skip


WRONG = [
    ("rk4", TypeError, "ode: expected a dictionary of steps"),
    ({"method": "rk4"}, TypeError, "ode: expected a dictionary of steps"),
    ({"steps": 4, "trace": None}, TypeError, "ode: expected a dictionary of steps"),
    ({"steps": 0}, ValueError, "steps: expected a positive integer"),
    ({"steps": 4, "method": "rk5"}, ValueError, "method: expected one of"),
    ({"steps": 4, "gradient": "none"}, ValueError, "gradient: expected"),
    ({"steps": 4, "on_failure": "stop"}, ValueError, "on_failure: expected"),
]


@pytest.mark.parametrize("ode, error, message", WRONG, ids=[str(ode) for ode, *_ in WRONG])
def test_wrong_options_are_named(ode, error, message):
    with pytest.raises(error, match=message):
        flowkern.accelerate(build()[0], ode=ode)


def test_weights_are_those_of_the_moment_and_of_the_copy():
    flow, x, c = build()
    fast = fixed(flow)
    before = fast(c).log_prob(x)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(twin(c).log_prob(x), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.1)
        assert torch.equal(fast(c).log_prob(x), before)
        plain = flowkern.restore(copy.deepcopy(twin))
        torch.testing.assert_close(twin(c).log_prob(x), plain(c).log_prob(x), rtol=1e-6, atol=1e-7)
    fast.load_state_dict(twin.state_dict())
    torch.testing.assert_close(fast(c).log_prob(x), twin(c).log_prob(x))


def test_the_error_of_the_steps_is_measured():
    """Of float32 with few steps against the solution; zuko's is within its tolerance of that too."""
    flow, x, c = build(dtype=torch.float32, atol=1e-6, rtol=1e-5)
    coarse, fine = (flowkern.ode_error(fixed(flow, method="midpoint", steps=n), x, c) for n in (8, 64))
    assert 0 < fine.logabsdet < coarse.logabsdet / 16 and 0 < fine.y < coarse.y / 16
    assert (fine.own_y, fine.own_logabsdet) == (coarse.own_y, coarse.own_logabsdet)
    assert 0 < fine.own_y < 1e-3 and 0 < fine.own_logabsdet < 1e-2
    fast, c = fixed(flow, method="midpoint", steps=8), c.double()
    exact = copy.deepcopy(flow).double().transform
    exact.atol, exact.rtol = 1e-9, 1e-8
    wanted = exact(c).call_and_ladj(x.double())[1]
    gap = fast.transform(c.float()).call_and_ladj(x)[1] - wanted
    assert gap.abs().max().item() == pytest.approx(coarse.logabsdet, rel=1e-3)
    assert flowkern.ode_error(fast.transform, x, c.float()) == coarse
    with pytest.raises(ValueError, match="^model: expected one accelerated"):
        flowkern.ode_error(flow, x, c)


# What is left to zuko


def with_network(flow, change):
    change(flow.transform)
    return flow


class Slower(zuko.flows.continuous.FFJTransform):
    def f(self, t, x, c=None):
        return super().f(t, x, c) / 2


# A fork that changed a formula under the old name.
FORK = type("FFJTransform", (Slower,), {"__module__": "fork.zuko.flows.continuous", "f": Slower.f})


LEFT = {
    "its network is not known: net: expected linear layers": lambda: CNF(3, normalize=True),
    "got Mish": lambda: CNF(3, activation=nn.Mish),
    "its network is no MLP but Sequential": lambda: with_network(
        CNF(3), lambda layer: setattr(layer, "ode", nn.Sequential(*layer.ode))
    ),
    "Slower overrides f": lambda: Slower(3),
    "its forward gives other numbers": lambda: FORK(3),
}


@pytest.mark.parametrize("reason", LEFT)
def test_left_as_it_is(reason):
    model = LEFT[reason]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flowkern.accelerate(model, ode=FINE)
    assert not flowkern.explain(model).replaced and reason in note(model)


def test_hooks_and_other_forwards_are_left_to_zuko_at_the_call():
    flow, x, c = build(atol=1e-6, rtol=1e-5)
    fast, calls = fixed(flow, method="midpoint", steps=2), []
    handle = fast.transform.ode[0].register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(fast(c).log_prob(x), flow(c).log_prob(x))
    assert calls and note(fast).endswith("computed by its own code: its network has hooks")
    handle.remove()
    assert not torch.allclose(fast(c).log_prob(x), flow(c).log_prob(x), rtol=1e-6, atol=1e-6)
    model = zuko.bayesian.BayesianModel(fast, init_logvar=0.0)
    with model.reparameterize(local_trick=True) as local:
        assert local(c).log_prob(x).isfinite().all()
        assert note(fast).endswith("a layer of its network has a forward of its own")


def test_wrong_inputs_raise_what_zuko_raises():
    flow, x, c = build()
    fast = fixed(flow)
    for bad in ((x[..., 1:], c), (x, c[:, 1:]), (x, None)):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            flow(bad[1]).log_prob(bad[0])
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            fast(bad[1]).log_prob(bad[0])


def test_empty_batches():
    flow, x, c = build()
    x, ladj = fixed(flow)(c[:0]).transform.call_and_ladj(x[:, :0])
    assert x.shape == (5, 0, 3) and ladj.shape == (5, 0)

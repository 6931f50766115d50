"""flowkern's own flows run in one call, with the numbers of their transforms one by one."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch

import flowkern
from flowkern import flows, nn
from flowkern.programs import program
from flowkern.transforms import (
    ActNorm,
    AffineAutoregressive,
    AffineCoupling,
    Compose,
    Inverse,
    LULinear,
    Permutation,
    SplineCoupling,
)

D, C = 4, 3
SMALL = {"hidden_features": (8, 8), "transforms": 3}
FLOWS = {
    "maf": lambda c: flows.MAF(D, c, **SMALL),
    "residual maf": lambda c: flows.MAF(D, c, conditioner=partial(nn.MADE, residual=True, activation="elu"), **SMALL),
    "spline maf": lambda c: flows.AutoregressiveNSF(D, c, bins=4, randperm=True, **SMALL),
    "real nvp": lambda c: flows.RealNVP(D, c, mixing="lu", actnorm=True, **SMALL),
    "nsf": lambda c: flows.NSF(D, c, bins=4, mixing="permutation", conditioner=nn.ResidualNet, **SMALL),
}


def build(name, context=C):
    torch.manual_seed(0)
    return randomised(FLOWS[name](context))


def randomised(module):
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.4)
    return module.double().eval()


def data(*batch, context=C):
    torch.manual_seed(1)
    x = torch.randn(*batch, D, dtype=torch.float64)
    return x, torch.randn(batch[-1], context, dtype=torch.float64) if context else None


def one_by_one(monkeypatch, function):
    with monkeypatch.context() as patch:
        patch.setattr(program.Segment, "tensors", lambda self, x, context: None)
        return function()


def results(flow, x, c):
    inputs = [t.clone().requires_grad_() for t in (x, c) if t is not None]
    torch.manual_seed(2)
    distribution = flow(inputs[1] if len(inputs) > 1 else None)
    outputs = distribution.log_prob(inputs[0]), *distribution.rsample_and_log_prob((2,))
    mixture = sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    return outputs, torch.autograd.grad(mixture, [*inputs, *flow.parameters()], allow_unused=True)


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", FLOWS)
def test_one_call_gives_the_numbers_of_each_transform(name, context, program_backend, programs, monkeypatch):
    flow, (x, c) = build(name, context), data(2, 5, context=context)
    wanted = one_by_one(monkeypatch, lambda: results(flow, x, c))
    assert not programs
    got = results(flow, x, c)
    assert [called.base for called in programs] == ["normal", None]
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def test_an_inverted_flow_and_a_composition_of_both(programs, monkeypatch):
    iaf, (x, c) = randomised(flows.IAF(D, C, **SMALL)), data(5)
    nice, (z, _) = randomised(flows.NICE(D, **SMALL)), data(5, context=0)
    for flow, x, c in ((iaf, x, c), (nice, z, None)):
        wanted = one_by_one(monkeypatch, lambda: results(flow, x, c))
        programs.clear()
        torch.testing.assert_close(results(flow, x, c), wanted, rtol=1e-8, atol=1e-8)
        assert len(programs) == 2


def test_a_transform_without_a_step_splits_it(programs, monkeypatch):
    class Doubling(Permutation):
        def forward(self, x, context=None):
            return 2 * x, x.new_full(x.shape[:-1], D * torch.tensor(2.0).log())

    torch.manual_seed(0)
    inner = Compose(Permutation([1, 0, 3, 2]), LULinear(D), Doubling([0, 1, 2, 3]))
    model = randomised(Compose(AffineCoupling(D), inner, Inverse(Compose(ActNorm(D), SplineCoupling(D)))))
    x, _ = data(5)
    wanted = one_by_one(monkeypatch, lambda: model(x))
    torch.testing.assert_close(model(x), wanted)
    assert [len(called.steps) for called in programs] == [3, 2]


@pytest.mark.parametrize("features", [1, 2])
def test_what_has_no_step_runs_as_before(features):
    """With one feature all are transformed."""
    flow = randomised(flows.RealNVP(features, 2, **SMALL))
    x, c = torch.randn(5, features, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    assert flow(c).log_prob(x).shape == (5,)


CHANGES = {
    "weights": lambda flow: [p.data.mul_(0.5) for p in flow.parameters()],
    "replaced": lambda flow: setattr(flow.transform.transforms, "1", randomised(LULinear(D))),
    "appended": lambda flow: flow.transform.transforms.append(randomised(LULinear(D))),
    "order": lambda flow: flow.transform.transforms[0].conditioner.order.copy_(torch.tensor([2, 0, 3, 1])),
    "element": lambda flow: setattr(flow.transform.transforms[0], "element", flowkern.ops.AffineElement("tanh")),
    "activation": lambda flow: setattr(flow.transform.transforms[0].conditioner, "activation", "tanh"),
    "forward": lambda flow: setattr(flow.transform.transforms[1], "forward", lambda x, c: (x + 1, x.sum(-1))),
    "hook": lambda flow: flow.transform.transforms[1].register_forward_hook(lambda m, i, o: (o[0] + 1, o[1])),
    "hook of all": lambda flow: flow.transform.register_forward_hook(lambda m, i, o: (o[0] + 1, o[1])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, programs, monkeypatch):
    flow, (x, c) = build("maf"), data(5)
    before = flow(c).log_prob(x)
    assert programs
    torch.manual_seed(3)
    CHANGES[change](flow)
    wanted = one_by_one(monkeypatch, lambda: flow(c).log_prob(x))
    assert not torch.allclose(wanted, before)
    torch.testing.assert_close(flow(c).log_prob(x), wanted)


def test_actnorm_sets_itself_from_its_first_batch(programs):
    torch.manual_seed(0)
    flow = flows.RealNVP(D, C, actnorm=True, **SMALL).double()
    x, c = data(50)
    flow(c).log_prob(3 * x + 1)
    assert all(layer.initialized for layer in flow.transform.transforms if isinstance(layer, ActNorm))
    programs.clear()
    flow(c).log_prob(x)
    assert [called.base for called in programs] == ["normal"]


def test_copies_and_pickles(programs):
    flow, (x, c) = build("nsf"), data(5)
    value = flow(c).log_prob(x)
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        programs.clear()
        torch.testing.assert_close(twin(c).log_prob(x), value)
        assert len(programs) == 1
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert not torch.allclose(twin(c).log_prob(x), value)
    torch.testing.assert_close(flow(c).log_prob(x), value)


def test_a_flow_is_freed_at_once():
    flow, (x, c) = build("maf"), data(5)
    flow(c).log_prob(x).sum().backward()
    freed = weakref.ref(flow)
    gc.disable()
    del flow
    gc.enable()
    assert freed() is None


def test_a_wrong_input_raises_as_before():
    flow, (x, c) = build("maf"), data(5)
    wrong = (
        (ValueError, "value: expected shape", x[:, 1:], c),
        (TypeError, "x: expected dtype", x.float(), c),
        (ValueError, "context: expected shape", x, c[:, 1:]),
    )
    for error, message, value, context in wrong:
        with pytest.raises(error, match=f"^{message}"):
            flow(context).log_prob(value)


def test_conditioners_of_ones_own_are_left(programs):
    class Own(torch.nn.Linear):
        pass

    layer = AffineCoupling(D, conditioner=Own(2, 4))
    model = randomised(Compose(layer, AffineAutoregressive(D, hidden_features=(8,))))
    x, _ = data(5)
    y, logabsdet = model(x)
    first, more = layer(x)
    wanted, last = model.transforms[1](first)
    torch.testing.assert_close((y, logabsdet), (wanted, more + last))
    assert [len(called.steps) for called in programs] == [1]

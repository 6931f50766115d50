"""`verify` finds what differs from the original, and nothing where nothing does."""

import copy
import sys

import normflows
import pytest
import torch
from nflows.transforms import CompositeTransform, LULinear
from torch import nn

import flowkern
from tests.adapters.program_models import NFLOWS, ZUKO, C, D, affine, data, nflows_flow, randomised, zuko_flow

FLOWS = [(nflows_flow, name, NFLOWS[name][1]) for name in NFLOWS] + [(zuko_flow, name, ZUKO[name][1]) for name in ZUKO]


def example(context, dtype=torch.float32, rows=32):
    x, c = data(context, rows, dtype)
    return x if c is None else (x, c)


@pytest.mark.parametrize("build, name, context", FLOWS, ids=[f"{f[0].__name__} {f[1]}" for f in FLOWS])
def test_accelerated_flows_agree(build, name, context):
    model = build(name, torch.float32)
    before = copy.deepcopy(model.state_dict())
    result = flowkern.verify(model, example(context))
    assert result and result.layers == len(flowkern.explain(flowkern.accelerate(model)).replaced) > 2
    named = {(check.what, check.dtype) for check in result.checks}
    gradients = ("log_prob: gradient of inputs", "log_prob: gradient of parameters")
    whats = ("log_prob", "value", "log-det", "inverse", "inverse log-det", *gradients)
    assert named > {(what, dtype) for what in whats for dtype in ("float64", "float32")}
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_layers_and_other_modules_agree():
    x, c = example(C)
    assert flowkern.verify(affine(), (x, c)).layers == 1
    assert flowkern.verify(CompositeTransform([affine(), LULinear(D)]).double(), example(C, torch.float64)).layers == 3
    wrapped = nn.Sequential(nn.Linear(D, D), Values(randomised(affine(None), torch.float32)))
    result = flowkern.verify(wrapped, x)
    assert result and result.layers == 1 and result.checks[0].what == "output"


class Values(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return {"y": self.layer(x)[0]}


def test_a_flow_of_normflows_agrees():
    torch.manual_seed(0)
    layers = [normflows.flows.AutoregressiveRationalQuadraticSpline(D, 1, 8), normflows.flows.LULinearPermute(D)]
    assert flowkern.verify(
        normflows.NormalizingFlow(normflows.distributions.DiagGaussian(D), layers), example(0)
    ).layers


def test_an_object_is_verified_by_its_flow():
    class Posterior:
        def __init__(self, flow):
            self.estimator = flow

    assert flowkern.verify(Posterior(nflows_flow("maf", torch.float32)), example(C)).model == "Flow"
    with pytest.raises(TypeError, match="object that holds one flow, got one that holds model.estimator"):
        flowkern.verify(Posterior(nn.Linear(2, 2)), example(C))


# What differs


def spoilt_layer(monkeypatch, spoil):
    """A layer whose op gives spoilt numbers."""
    from flowkern.adapters import _made

    true = _made.evaluate

    def evaluate(x, layers, degrees, element, inverse):
        return spoil(inverse, *true(x, layers, degrees, element, inverse))

    layer = flowkern.accelerate(randomised(affine(), torch.float32))
    monkeypatch.setattr(_made, "evaluate", evaluate)
    return layer


FAULTS = {
    "value": lambda inverse, y, l: (y if inverse else y * (1 + 1e-6), l),
    "log-det": lambda inverse, y, l: (y, l if inverse else l + 1e-5),
    "inverse": lambda inverse, y, l: (y + 1e-5 if inverse else y, l),
    "inverse log-det": lambda inverse, y, l: (y, l * 1.001 if inverse else l),
    "value, log-det: gradient of inputs": lambda inverse, y, l: (y if inverse else Halved.apply(y), l),
    "value, log-det: gradient of parameters": lambda inverse, y, l: (y if inverse else Halved.apply(y), l),
}


class Halved(torch.autograd.Function):
    """The identity, with half its gradient."""

    @staticmethod
    def forward(ctx, y):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found(what, monkeypatch):
    layer = spoilt_layer(monkeypatch, FAULTS[what])
    result = flowkern.verify(layer, example(C))
    assert not result and not result.agrees
    assert {(check.what, check.dtype) for check in result.checks if not check.agrees} >= {(what, "float64")}
    assert "DISAGREES" in str(result) and result.as_dict()["agrees"] is False
    assert flowkern.explain(layer).replaced


def test_a_fault_in_the_models_own_precision_is_found(monkeypatch):
    coarse = lambda inverse, y, l: (y.bfloat16().to(y.dtype) if y.dtype == torch.float32 else y, l)  # noqa: E731
    result = flowkern.verify(spoilt_layer(monkeypatch, coarse), example(C))
    assert {check.dtype for check in result.checks if not check.agrees} == {"float32"}


def test_an_error_of_the_accelerated_model_is_a_disagreement(monkeypatch):
    def broken(inverse, y, l):
        raise RuntimeError("no kernel")

    result = flowkern.verify(spoilt_layer(monkeypatch, broken), example(C))
    assert not result and "the accelerated model raised RuntimeError: no kernel" in str(result)


def test_a_checked_model_is_accelerated_or_restored(monkeypatch):
    flow = nflows_flow("maf", torch.float32)
    assert flowkern.explain(flowkern.accelerate(flow, check=example(C))).replaced
    layer = spoilt_layer(monkeypatch, FAULTS["value"])
    with pytest.raises(RuntimeError, match="^check: the accelerated model gives other numbers and was restored\n.*"):
        flowkern.accelerate(layer, check=example(C))
    assert not flowkern.explain(layer).replaced
    flowkern.accelerate(layer)
    with pytest.raises(ValueError, match="example: the model raised "):
        flowkern.accelerate(layer, check=(example(C)[0][:, :2], example(C)[1]))
    assert not flowkern.explain(layer).replaced


@pytest.mark.parametrize(
    "wrong, error", [("x", TypeError), ((), TypeError), (torch.ones(0, D), ValueError), (3, TypeError)]
)
def test_what_is_no_example(wrong, error):
    with pytest.raises(error, match="^example: expected "):
        flowkern.verify(affine(None), wrong)


def test_shown_by_rich_or_as_text(capsys, monkeypatch):
    result = flowkern.verify(affine(None), example(0))
    result.show()
    assert "agrees" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    result.show()
    assert str(result) in capsys.readouterr().out

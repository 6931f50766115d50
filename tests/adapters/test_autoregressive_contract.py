"""Accelerated autoregressive layers: what is not accelerated, and why."""

import copy
import itertools
import pickle
import warnings

import nflows.transforms as nflows
import pytest
import torch
import torch.nn.functional as F
import zuko
import zuko.bayesian
from nflows.transforms.base import InputOutsideDomain
from nflows.transforms.made import MaskedFeedforwardBlock, MaskedLinear
from torch import nn
from torch.nn.utils import prune

import flowkern
from tests.adapters.autoregressive_models import (
    FEATURES,
    build,
    call,
    nflows_affine,
    nflows_spline,
    normflows_spline,
    randomised,
    zuko_maf,
)

EACH = ("nflows", "nflows norm", "nflows spline", "normflows", "zuko", "zuko spline")


def assert_same(fast, plain, inputs, context, methods=("forward", "inverse")):
    for method in methods:
        wanted = call(getattr(plain, method), inputs, context)
        got = call(getattr(fast, method), inputs, context)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)
        with torch.no_grad():  # the kernel computes the context's terms too
            got = call(getattr(fast, method), inputs, context)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def pair(name):
    layer, inputs, context = build(name)
    return layer.eval(), flowkern.accelerate(copy.deepcopy(layer.eval())), inputs, context


# No stale weights


def note(model):
    return (*flowkern.explain(model).replaced, *flowkern.explain(model).left)[0].note


@pytest.mark.parametrize(
    "options, reason",
    [({"dropout_probability": 0.5}, "its dropout is active"), ({"use_batch_norm": True}, "its batch n")],
)
def test_training_that_no_kernel_computes_is_left_at_the_call(options, reason):
    fast = flowkern.accelerate(randomised(nflows_affine(**options)).eval())
    assert note(fast) == "forward, inverse"
    inputs = torch.randn(8, FEATURES)
    first = fast(inputs)[0]
    assert reason in note(fast.train())
    torch.manual_seed(3)
    got = fast(inputs)[0]
    torch.manual_seed(3)
    assert torch.equal(got, type(fast).forward(fast, inputs)[0]) and not torch.equal(got, first)
    assert note(fast.eval()) == "forward, inverse"


def test_a_hook_in_the_network_is_called():
    _, fast, inputs, context = pair("nflows")
    calls = []
    handle = fast.autoregressive_net.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    fast(inputs, context)
    assert calls == [1] and note(fast).endswith("its network has hooks")
    handle.remove()
    fast(inputs, context)
    assert calls == [1] and note(fast).startswith("forward, inverse") and "at present" not in note(fast)


class Halved(nflows.MaskedAffineAutoregressiveTransform):
    def _unconstrained_scale_and_shift(self, params):
        scale, shift = super()._unconstrained_scale_and_shift(params)
        return scale / 2, shift


def with_network(layer, change):
    change(layer.autoregressive_net)
    return layer


def pruned(layer):
    prune.l1_unstructured(layer.autoregressive_net.final_layer, "weight", 0.5)
    return layer


LEFT = {
    "overrides _unconstrained_scale_and_shift": lambda: Halved(4, 8),
    "its activation mish has no kernel": lambda: nflows_affine(activation=F.mish),
    "its network holds GELU": lambda: nflows_affine(activation=nn.GELU("tanh")),
    "its network is no MADE but Linear": lambda: with_network(
        nflows_affine(), lambda net: setattr(net, "__class__", nn.Linear)
    ),
    "its network holds LayerNorm": lambda: with_network(
        nflows_affine(), lambda net: net.blocks.append(nn.LayerNorm(12))
    ),
    "its network has hooks": lambda: pruned(nflows_affine()),
    "its tail_bound is no plain number": lambda: nflows_spline(tails="linear", tail_bound=torch.tensor(1.0)),
    "its tails are a list": lambda: normflows_spline(tails=["linear", "circular", "linear", "linear", "linear"]),
    "its tail_bound is no plain number but Tensor": lambda: normflows_spline(
        tails="linear", tail_bound=torch.ones(FEATURES)
    ),
    "univariate transform CircularRQSTransform": lambda: zuko.flows.NCSF(3),
    "univariate transform MNN": lambda: zuko.flows.NAF(3),
    "its network holds Mish": lambda: zuko_maf(activation=nn.Mish),
    "there is no fused kernel for this layer": lambda: zuko.flows.GF(3),
}


@pytest.mark.parametrize("reason", LEFT)
def test_left_as_it_is(reason):
    layer = LEFT[reason]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flowkern.accelerate(layer)
    assert not flowkern.explain(layer).replaced
    assert reason in flowkern.explain(layer).left[0].note


def test_a_changed_formula_is_noticed(monkeypatch):
    """Forks change formulas under unchanged names."""
    layer = nflows_affine()
    layer._epsilon = 1e-3
    layer.autoregressive_net.activation = F.relu
    layer.autoregressive_net.blocks[0].activation = torch.tanh  # settings like this one are read
    assert flowkern.explain(layer).replaceable
    monkeypatch.setattr(MaskedLinear, "forward", lambda self, x: F.linear(x, 2 * self.weight * self.mask, self.bias))
    assert "its forward gives other numbers" in flowkern.explain(layer).left[0].note


def test_bad_inputs_raise_what_the_peer_raises():
    layer, inputs, context = build("nflows")
    fast = flowkern.accelerate(layer)
    bad = (inputs[:, 1:], context), (inputs.float(), context), (inputs, context[:, 1:]), (inputs, context.float())
    for arguments, keep in itertools.product(bad, (True, False)):
        with pytest.raises(RuntimeError, match="mat1 and mat2"), torch.set_grad_enabled(keep):
            fast(*arguments)
    with pytest.raises(AttributeError, match="context_layer"):
        flowkern.accelerate(nflows_affine())(inputs.float(), context.float())
    unit = flowkern.accelerate(nflows_spline())
    for method in (unit, unit.inverse):
        with pytest.raises(InputOutsideDomain):
            method(torch.full((2, FEATURES), 1.5))


def test_a_context_may_be_left_out():
    for name in ("nflows", "nflows feed-forward", "normflows"):
        plain, fast, inputs, _ = pair(name)
        assert_same(fast, plain, inputs, None)


# A network changed after accelerate


def in_blocks(name, value):
    """A change of a MADE: value() becomes that attribute of its blocks, in training mode."""

    def change(layer):
        for block in layer.train().autoregressive_net.blocks:
            setattr(block, name, value())

    return change


def in_net(name, value):
    return lambda layer: setattr(layer.autoregressive_net, name, value())


def in_hyper(index, value):
    """A change of zuko's first hyper-network: its part of that index becomes value(part)."""

    def change(layer):
        hyper = layer.layer.transforms[0].hyper
        hyper[index] = value(hyper[index])

    return change


def append_feedforward(layer):
    blocks = layer.autoregressive_net.blocks
    blocks.append(MaskedFeedforwardBlock(blocks[0].degrees, FEATURES).double())


def append_activation(layer):
    layer.layer.transforms[0].hyper.insert(2, nn.Tanh())


def set_univariate(layer):
    layer.layer.transforms[0].univariate = steeper


def steeper(shift, scale):
    return zuko.transforms.MonotonicAffineTransform(shift, scale, slope=0.5)


def hooked():
    module = nn.Dropout(0.0)
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


LEFT_AT_THE_CALL = [
    ("its dropout is active", "nflows", in_blocks("dropout", nn.Dropout)),
    (
        "its batch normalisation takes",
        "nflows feed-forward",
        in_blocks("batch_norm", lambda: nn.BatchNorm1d(12).double()),
    ),
    ("its network has hooks", "nflows", in_blocks("dropout", hooked)),
    ("its activation sin has no kernel", "nflows", in_blocks("activation", lambda: torch.sin)),
    ("its activation celu has no kernel", "normflows", in_blocks("activation", lambda: F.celu)),
    ("its activation cos has no kernel", "nflows feed-forward", in_net("activation", lambda: torch.cos)),
    ("its network holds Tanh", "nflows feed-forward", in_blocks("dropout", nn.Tanh)),
    ("its network holds Linear", "nflows", in_net("initial_layer", lambda: nn.Linear(5, 12).double())),
    ("its network holds Tanh", "normflows", in_net("preprocessing", nn.Tanh)),
    ("its network holds blocks of both kinds", "nflows", append_feedforward),
    ("its network holds Mish", "zuko", in_hyper(1, lambda part: nn.Mish())),
    ("its network holds Sequential", "zuko residual", in_hyper(1, lambda part: nn.Sequential(*part))),
    ("its network has its parts in another order", "zuko residual", in_hyper(1, lambda part: part[1:])),
    ("its network has its parts in another order", "zuko", append_activation),
    ("its univariate transform steeper", "zuko", set_univariate),
]


def changed(name, change):
    """Results of a layer changed by that, plain and after accelerate and a call, and the latter."""
    plain, fast, inputs, context = pair(name)
    call(fast, inputs, context)
    results = []
    for model in (plain, fast):
        torch.manual_seed(3)
        change(model)
        results.append(call(model, inputs, context))
    return *results, fast


@pytest.mark.parametrize("reason, name, change", LEFT_AT_THE_CALL)
def test_a_change_that_no_kernel_computes_is_left_at_the_call(reason, name, change):
    wanted, got, fast = changed(name, change)
    torch.testing.assert_close(got, wanted)
    assert reason in note(fast)


@pytest.mark.parametrize(
    "name, change",
    [
        ("nflows", in_blocks("dropout", nn.Identity)),
        ("nflows", in_blocks("activation", lambda: torch.tanh)),
        ("nflows feed-forward", in_blocks("activation", nn.ELU)),
        ("nflows feed-forward", in_blocks("batch_norm", lambda: nn.BatchNorm1d(12).double().eval())),
        ("zuko", in_hyper(1, lambda part: nn.Tanh())),
    ],
)
def test_a_change_that_a_kernel_computes_is_taken(name, change):
    wanted, got, fast = changed(name, change)
    torch.testing.assert_close(got, wanted)
    assert "at present" not in note(fast)


def test_a_setting_of_an_activation_is_read_at_the_call():
    layer = zuko_maf(activation=nn.GELU)
    fast, inputs = flowkern.accelerate(copy.deepcopy(layer)), torch.randn(4, FEATURES)
    for model in (layer, fast):
        for module in (m for m in model.modules() if isinstance(m, nn.GELU)):
            module.approximate = "tanh"
    torch.testing.assert_close(fast(inputs), layer(inputs))
    assert note(fast).endswith("its network holds GELU")


@pytest.mark.parametrize("name", ["nflows", "zuko"])
def test_copies_know_their_own_network(name):
    change = in_blocks("dropout", nn.Dropout) if name == "nflows" else in_hyper(1, lambda part: nn.Mish())
    _, fast, inputs, context = pair(name)
    call(fast, inputs, context)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        change(twin)
        assert "at present computed by its own code" in str(flowkern.explain(twin))
        assert "at present" not in str(flowkern.explain(fast))


def masks_of(model):
    return [buffer for name, buffer in model.named_buffers() if name.endswith("mask")]


def test_a_mask_of_a_copy_written_as_often_as_the_original():
    """Versions of a copy begin anew."""
    _, fast, inputs, context = pair("nflows")
    for mask in masks_of(fast):
        mask.copy_(mask.clone())
    call(fast, inputs, context)
    twin = copy.deepcopy(fast)
    for mask in masks_of(twin):
        mask.zero_()
    plain = flowkern.restore(copy.deepcopy(twin))
    torch.testing.assert_close(call(twin, inputs, context), call(plain, inputs, context))


# Whole flows

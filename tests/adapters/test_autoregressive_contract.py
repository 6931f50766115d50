"""Accelerated autoregressive layers: parameters as they are now, copies, what is left, and why."""

import copy
import functools
import io
import itertools
import pickle
import warnings

import nflows.transforms as nflows
import pytest
import torch
import torch.nn.functional as F
import zuko
import zuko.bayesian
from nflows.distributions import StandardNormal
from nflows.flows import Flow, MaskedAutoregressiveFlow
from nflows.transforms.base import InputOutsideDomain
from nflows.transforms.made import MaskedFeedforwardBlock, MaskedLinear
from normflows import flows as normflows
from torch import nn
from torch.distributions.transforms import _InverseTransform
from torch.nn.utils import prune

import flowkern
from tests.adapters.autoregressive_models import (
    CONTEXT,
    FEATURES,
    LAYERS,
    build,
    call,
    nflows_affine,
    nflows_spline,
    normflows_spline,
    randomised,
    zuko_maf,
)
from tests.adapters.test_accelerate import replicate

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


@pytest.mark.parametrize("name", EACH)
def test_an_optimiser_step_is_seen(name):
    plain, fast, inputs, context = pair(name)
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        call(model, inputs, context)[1].sum().backward()
        optimizer.step()
    assert_same(fast, plain, inputs, context)


@pytest.mark.parametrize("name", EACH)
def test_edits_of_parameters_and_buffers_are_seen(name):
    plain, fast, inputs, context = pair(name)
    before = call(fast, inputs, context)[0]
    for model in (plain, fast):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.running_mean.data += 1
            norm.running_var.data *= 2
    assert not torch.allclose(call(fast, inputs, context)[0], before)
    assert_same(fast, plain, inputs, context)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", [*EACH, "nflows random mask", "normflows spline", "zuko without context"])
def test_a_loaded_state_is_seen(name, assign):
    """With its masks, which random ones and random orders make part of the state."""
    _, fast, inputs, context = pair(name)
    torch.manual_seed(7)
    other = randomised(LAYERS[name][0]().double()).eval()
    assert_same(fast, fast, inputs, context)
    fast.load_state_dict(other.state_dict(), assign=assign)
    assert_same(fast, other, inputs, context)


@pytest.mark.parametrize("name", EACH)
def test_a_change_of_dtype_is_seen(name):
    plain, fast, inputs, context = pair(name)
    rounded = copy.deepcopy(plain).float()
    fast.float()
    got = call(fast, inputs.float(), None if context is None else context.float())
    assert got[0].dtype == got[1].dtype == torch.float32
    assert_same(fast.double(), rounded.double(), inputs, context)


# Copies


@pytest.mark.parametrize("name", EACH)
def test_copies_run_on_their_own_parameters(name):
    _, fast, inputs, context = pair(name)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    wanted = call(fast, inputs, context)
    for twin in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        assert flowkern.explain(twin).replaced and list(twin.state_dict()) == list(fast.state_dict())
        torch.testing.assert_close(call(twin, inputs, context), wanted)
        for parameter in twin.parameters():
            parameter.data += 0.1
        assert torch.equal(call(fast, inputs, context)[0], wanted[0])
        assert_same(twin, flowkern.restore(copy.deepcopy(twin)), inputs, context)


@pytest.mark.parametrize("name", ["nflows", "nflows norm", "normflows"])
def test_data_parallel_replica_runs_on_its_own_tensors(name):
    _, fast, inputs, context = pair(name)
    other = copy.deepcopy(fast)
    for parameter in other.parameters():
        parameter.data += 0.1
    replica = replicate(fast, dict(other.named_parameters()))
    assert_same(replica, other, inputs, context)


@pytest.mark.parametrize("name", EACH)
def test_functional_call_and_vmap(name):
    """`torch.func.vmap` over the weights of several models is left to the peer."""
    plain, fast, inputs, context = pair(name)
    others = [{k: v + 0.1 * i for k, v in fast.named_parameters()} for i in range(2)]
    arguments = (inputs,) if context is None else (inputs, context)

    def function(model, parameters):
        return torch.func.functional_call(model, parameters, arguments)

    for parameters in others:
        torch.testing.assert_close(function(fast, parameters), function(plain, parameters))
    stacked = {k: torch.stack([other[k] for other in others]) for k in others[0]}
    if "spline" not in name:  # nflows and zuko index splines by data
        got = torch.vmap(lambda p: function(fast, p))(stacked)
        torch.testing.assert_close([g[1] for g in got], list(function(plain, others[1])))


@pytest.mark.parametrize("name", ["nflows", "normflows", "zuko", "zuko spline"])
def test_vmap_of_gradients_over_stacked_models(name):
    """The transform that maps is below the one that differentiates."""
    plain, fast, inputs, context = pair(name)
    states = torch.func.stack_module_state([plain, randomised(copy.deepcopy(plain))])

    def gradients(model):
        def loss(parameters, buffers):
            arguments = (inputs,) if context is None else (inputs, context)
            return torch.func.functional_call(model, (parameters, buffers), arguments)[0].square().mean()

        return torch.vmap(torch.func.grad(loss))(*states)

    torch.testing.assert_close(gradients(fast), gradients(plain))


def test_vmap_over_masks_alone():
    plain, fast, inputs, context = pair("nflows random mask")
    other = LAYERS["nflows random mask"][0]().double().eval()
    _, buffers = torch.func.stack_module_state([plain, other])

    def values(model):
        function = functools.partial(torch.func.functional_call, model, args=(inputs, context))
        return torch.vmap(function)(buffers)

    torch.testing.assert_close(values(fast), values(plain))


def test_restore_undoes_it():
    for name in LAYERS:
        layer, _, _ = build(name)
        before = {n: dict(m.__dict__) for n, m in layer.named_modules()}
        flowkern.restore(flowkern.accelerate(layer))
        assert {n: dict(m.__dict__) for n, m in layer.named_modules()} == before


def test_default_device_and_random_state_do_not_matter():
    layer, random_state = build("nflows")[0], torch.get_rng_state()
    with torch.device("meta"):
        flowkern.accelerate(layer)
    assert flowkern.explain(layer).replaced and torch.equal(torch.get_rng_state(), random_state)


def test_the_default_dtype_does_not_matter():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert flowkern.explain(flowkern.accelerate(zuko_maf(context=CONTEXT))).replaced
        assert flowkern.explain(flowkern.accelerate(nflows_affine())).replaced
    finally:
        torch.set_default_dtype(previous)


# What is left to the peer, and why


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
    "its activation softplus has no kernel": lambda: nflows_affine(activation=F.softplus),
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
    "its network holds Softplus": lambda: zuko_maf(activation=nn.Softplus),
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
        with pytest.raises(RuntimeError), torch.set_grad_enabled(keep):
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
    ("its network holds Softplus", "zuko", in_hyper(1, lambda part: nn.Softplus())),
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
    change = in_blocks("dropout", nn.Dropout) if name == "nflows" else in_hyper(1, lambda part: nn.Softplus())
    _, fast, inputs, context = pair(name)
    call(fast, inputs, context)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        change(twin)
        assert "at present left to its own code" in note(twin) and "at present" not in note(fast)


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


def test_sampling_for_one_context_and_for_many():
    layers = [LAYERS["nflows feed-forward"][0](), nflows.RandomPermutation(FEATURES)]
    plain = Flow(nflows.CompositeTransform(layers), StandardNormal([FEATURES]))
    fast = flowkern.accelerate(copy.deepcopy(plain))
    for contexts in (1, 3):
        context = torch.randn(contexts, CONTEXT)
        results = []
        for model in (plain, fast):
            torch.manual_seed(0)
            given = context.clone().requires_grad_()
            sample, log_prob = model.sample_and_log_prob(4, given)
            results.append([sample, *torch.autograd.grad(log_prob.sum(), given)])
            with torch.no_grad():
                torch.manual_seed(0)
                results[-1].append(model.sample(4, context))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_whole_flow_of_nflows():
    model = MaskedAutoregressiveFlow(4, 8, 3, 2, batch_norm_within_layers=True)
    flowkern.accelerate(model)
    assert len(flowkern.explain(model).replaced) == 3


def test_normflows_samples_in_one_pass_forward():
    """Its `forward` goes from noise to data: the wrapper of splines turns the layer round."""
    flow = normflows.AutoregressiveRationalQuadraticSpline(3, 1, 8)
    names = [layer.name for layer in flowkern.explain(flowkern.accelerate(flow)).replaced]
    assert names == ["mprqat"]


@pytest.mark.parametrize("name", ["zuko", "zuko spline"])
def test_transforms_of_zuko(name):
    """Classes, the inverse, and batch shapes are those of zuko."""
    plain, fast, inputs, context = pair(name)
    c = context[0]
    for layers in zip(plain.layer.transforms, fast.layer.transforms):
        (t, s) = (layer(c) for layer in layers)
        assert isinstance(s, zuko.transforms.AutoregressiveTransform) and s.passes == t.passes
        assert isinstance(s.inv, _InverseTransform) and s.inv.inv is s and s.inv is s.inv
        assert (s.domain, s.codomain, s.bijective) == (t.domain, t.codomain, t.bijective)
        assert pickle.loads(pickle.dumps(s)).passes == t.passes
        x = inputs.view(2, 3, 1, FEATURES)
        for given in (c, context[:4].view(4, CONTEXT), context.view(2, 3, 1, CONTEXT)):
            (t, s) = (layer(given) for layer in layers)
            y = t(x)
            torch.testing.assert_close(s(x), y)
            torch.testing.assert_close(s.inv(y), t.inv(y))
            torch.testing.assert_close(s.inv.call_and_ladj(y), t.inv.call_and_ladj(y))
            torch.testing.assert_close(s.log_abs_det_jacobian(x, y), s.call_and_ladj(x)[1])


def test_a_flow_of_zuko():
    flow = zuko.flows.NSF(3, 2).double()
    fast, c = flowkern.accelerate(copy.deepcopy(flow)), torch.randn(4, 2).double()
    assert repr(fast(c)).count("AutoregressiveTransform") == 3
    results = []
    for model in (flow, fast):
        torch.manual_seed(0)
        x, log_prob = model(c).rsample_and_log_prob((5,))
        results.append([x, log_prob, model(c).log_prob(x), *torch.autograd.grad(x.sum(), model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


def test_a_bayesian_model_of_zuko():
    """It exchanges the forward of the linear layers for a while, which the kernel cannot see."""
    flow = flowkern.accelerate(zuko.flows.MAF(3, transforms=1))
    model, x = zuko.bayesian.BayesianModel(flow, init_logvar=0.0), torch.randn(4, 3)
    with model.reparameterize(local_trick=True) as local:
        first = local().log_prob(x)
        assert note(flow).endswith("its network holds a MaskedLinear with a forward of its own")
    with model.reparameterize(local_trick=True) as local:
        assert not torch.allclose(local().log_prob(x), first)
    assert note(flow) == "forward; its transform in one call"
    assert not torch.allclose(model.sample_model()().log_prob(x), flow().log_prob(x))


def test_a_wrong_context_of_zuko_raises_as_before():
    fast = flowkern.accelerate(zuko_maf(context=CONTEXT))
    for context in (None, torch.randn(2)):
        with pytest.raises(RuntimeError):
            fast(torch.randn(4, FEATURES), context)


@pytest.mark.parametrize("name", ["nflows", "nflows feed-forward norm", "normflows spline"])
def test_compiles_to_one_graph(name, inverse):
    _, fast, inputs, context = pair(name)
    method = fast.inverse if inverse else fast
    wanted = method(inputs, context)
    torch._dynamo.reset()
    got = torch.compile(method, fullgraph=True, backend="aot_eager")(inputs, context)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("first", [False, True])
def test_compiles_with_a_dropout_put_in_since_the_last_call(first):
    _, fast, inputs, context = pair("nflows")
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    if first:
        compiled(inputs, context)
    in_blocks("dropout", nn.Dropout)(fast)
    assert not torch.equal(compiled(inputs, context)[0], compiled(inputs, context)[0])


def test_a_strict_export_keeps_the_names_of_parameters():
    _, fast, inputs, context = pair("nflows")
    exported = torch.export.export(fast, (inputs, context), strict=True)
    assert "p_autoregressive_net_initial_layer_weight" in [node.name for node in exported.graph.nodes]


# The meta device


@pytest.mark.parametrize("name", ["nflows", "nflows random mask", "normflows", "zuko"])
def test_the_meta_device_is_left_to_the_peer(name):
    plain, fast, inputs, context = pair(name)
    assert "it is on the meta device" in flowkern.explain(plain.to("meta")).left[0].note
    fast.to("meta")
    arguments = [None if tensor is None else tensor.to("meta") for tensor in (inputs, context)]
    assert call(fast, *arguments)[0].shape == inputs.shape
    assert note(fast).endswith("it is on the meta device")

"""Whole models of accelerated autoregressive layers: samples, flows, compiled and exported."""

import copy
import pickle

import nflows.transforms as nflows
import pytest
import torch
import zuko
import zuko.bayesian
from nflows.distributions import StandardNormal
from nflows.flows import Flow, MaskedAutoregressiveFlow
from normflows import flows as normflows
from torch import nn
from torch.distributions.transforms import _InverseTransform

import flowkern
from tests.adapters.autoregressive_models import (
    CONTEXT,
    FEATURES,
    LAYERS,
    call,
    zuko_maf,
)
from tests.adapters.test_autoregressive_contract import in_blocks, note, pair


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
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
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

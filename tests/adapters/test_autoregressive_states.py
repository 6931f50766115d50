"""Accelerated autoregressive layers whose tensors change, or are others: steps, edits, copies, functional calls."""

import copy
import functools
import io

import pytest
import torch
from torch import nn

import flowkern
from tests.adapters.autoregressive_models import (
    CONTEXT,
    LAYERS,
    build,
    call,
    nflows_affine,
    randomised,
    zuko_maf,
)
from tests.adapters.test_accelerate import replicate
from tests.adapters.test_autoregressive_contract import EACH, assert_same, pair


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

"""Accelerated layers in surroundings that plain ones work in: half precision, inference mode, fake tensors, …"""

import copy
import pickle

import pytest
import torch
import zuko
from torch._subclasses.fake_tensor import FakeTensorMode

import flowkern
from tests.adapters import autoregressive_models, nflows_models
from tests.adapters.autoregressive_models import call

MASKED = list(autoregressive_models.LAYERS)
COUPLINGS = [name for name in nflows_models.LAYERS if name != "lu"]
EACH = ("nflows", "nflows spline", "normflows", "normflows spline", "zuko", "zuko spline")


def build(name, dtype=torch.float64):
    source = nflows_models if name in nflows_models.LAYERS else autoregressive_models
    layer, inputs, context = source.build(name, dtype=dtype)
    return layer.eval(), inputs, context


def accelerated(layer):
    fast = flowkern.accelerate(layer)
    assert flowkern.explain(fast).replaced and not flowkern.explain(fast).left
    return fast


# Half precision


@pytest.mark.parametrize("name", [*MASKED, *COUPLINGS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_has_results_of_its_dtype(name, dtype, inverse):
    layer, inputs, context = build(name, torch.float32)
    fast = accelerated(layer).to(dtype)
    context = None if context is None else context.to(dtype)
    for keep in (True, False):
        with torch.set_grad_enabled(keep):
            y, logabsdet = call(fast.inverse if inverse else fast, inputs.to(dtype), context)
        assert y.dtype == logabsdet.dtype == dtype
    assert "at present" not in flowkern.explain(fast).replaced[-1].note


def test_a_loss_in_half_precision():
    model = accelerated(zuko.flows.MAF(4, 0, hidden_features=(8,)).bfloat16())
    loss = torch.ones(5).bfloat16() @ model().log_prob(torch.randn(5, 4).bfloat16())
    loss.backward()
    assert loss.dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in model.parameters())


# Modes in which a layer is looked at, and after which it is used


def fake():
    return FakeTensorMode(allow_non_fake_inputs=True)


MODES = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a FakeTensorMode": fake,
}
RENEWALS = {
    "loaded": lambda layer: layer.load_state_dict(layer.state_dict()) and layer,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "double": lambda layer: layer.float().double(),
}


def assert_trains(fast, plain, inputs, context):
    """The gradients of the log-det, as the plain layer's."""
    grads = []
    for model in (fast, plain):
        model.zero_grad()
        call(model, inputs, context)[1].sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None and p.grad.any()])
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("renewal", RENEWALS)
@pytest.mark.parametrize("name", [*EACH, "affine", "spline"])
def test_a_layer_called_in_a_mode_trains_afterwards(name, renewal, mode):
    layer, inputs, context = build(name)
    plain, fast = copy.deepcopy(layer), RENEWALS[renewal](accelerated(layer))
    if renewal == "double":
        plain = plain.float().double()
    with MODES[mode]():
        call(fast, inputs, context)
    assert flowkern.explain(fast).replaced
    assert_trains(fast, plain, inputs, context)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*EACH, "affine", "spline"])
def test_a_layer_accelerated_in_a_mode_trains_afterwards(name, mode):
    layer, inputs, context = build(name)
    plain = copy.deepcopy(layer)
    with MODES[mode]():
        fast = accelerated(layer)
    assert_trains(fast, plain, inputs, context)


@pytest.mark.parametrize("name", EACH)
def test_a_layer_looked_at_inside_transforms_of_torch_func_trains_afterwards(name):
    layer, inputs, context = build(name)
    plain, fast = copy.deepcopy(layer), RENEWALS["deepcopy"](accelerated(layer))

    def loss(inputs):
        return call(fast, inputs, context)[1].sum()

    torch.func.grad(loss)(inputs)
    assert_trains(fast, plain, inputs, context)
    fast = RENEWALS["deepcopy"](fast)
    torch.vmap(lambda row: call(fast, row[None], None if context is None else context[:1]))(inputs)
    assert_trains(fast, plain, inputs, context)


@pytest.mark.parametrize("name", ["nflows", "normflows", "zuko"])
def test_fake_models_are_left_to_the_library(name):
    layer, inputs, context = build(name)
    fast, mode = accelerated(layer), FakeTensorMode()
    with mode:
        for store in ("_parameters", "_buffers"):
            for module in fast.modules():
                held = module.__dict__[store]
                held.update({k: t if t is None else mode.from_tensor(t) for k, t in held.items()})
        arguments = [None if t is None else mode.from_tensor(t) for t in (inputs, context)]
        assert call(fast, *arguments)[0].shape == inputs.shape
        assert flowkern.explain(fast).replaced[0].note.endswith("its masks are fake tensors")


# Ensembles, by `stack_module_state`, `functional_call` and `vmap`


def ensemble(name):
    """Three layers of one structure, accelerated, and (inputs, context)."""
    members = [build(name) for _ in range(3)]
    return [accelerated(layer) for layer, *_ in members], *members[0][1:]


@pytest.mark.parametrize("name", [*COUPLINGS, "lu", "nflows", "normflows", "zuko"])
def test_an_ensemble_by_vmap_over_stacked_states(name, inverse):
    members, inputs, context = ensemble(name)
    states, base = torch.func.stack_module_state(members), copy.deepcopy(members[0])

    def values(layer):
        y, logabsdet = call(layer.inverse if inverse else layer, inputs, context)
        return y.flatten(1).sum(1) + logabsdet

    def of_state(*state):
        with torch.nn.utils.stateless._reparametrize_module(base, {**state[0], **state[1]}):
            return values(base)

    got = torch.vmap(of_state)(*states)
    torch.testing.assert_close(got, torch.stack([values(layer) for layer in members]))
    grads = torch.vmap(torch.func.grad(lambda *state: of_state(*state).sum()))(*states)
    for i, layer in enumerate(members):
        wanted = torch.autograd.grad(values(layer).sum(), list(layer.parameters()), allow_unused=True)
        for grad, want in zip(grads.values(), wanted):
            torch.testing.assert_close(grad[i], torch.zeros_like(grad[i]) if want is None else want)


def test_an_ensemble_of_layers_with_different_masks_is_refused():
    masks, net = ([1, 0, 1, 0], [1, 1, 0, 0]), nflows_models.UnscaledNet
    layers = [nflows_models.AffineCouplingTransform(mask, net).eval() for mask in masks]
    states, base = torch.func.stack_module_state(list(map(accelerated, layers))), layers[0]
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="index: expected the same in all modules that vmap maps over"):
        torch.vmap(lambda *state: torch.func.functional_call(base, state, x))(*states)

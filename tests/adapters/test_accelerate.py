"""accelerate, restore and explain: what they change in a model, and what survives copies."""

import copy
import functools
import importlib
import io
import re
import sys
from pathlib import Path

import nflows
import pytest
import torch
import torch.nn.functional as F
from nflows.transforms import (
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    CompositeTransform,
    LeakyReLU,
    PiecewiseLinearCouplingTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    ReversePermutation,
)
from torch import nn

import flowkern
from tests.adapters.nflows_models import (
    CONTEXT,
    LAYERS,
    MASK,
    TAILS,
    build,
    own_spline,
    sbi_flow,
    spline,
    vector_net,
)


def state(model):
    """Everything that a module's dictionaries hold, by identity."""
    return {name: {k: id(v) for k, v in m.__dict__.items()} for name, m in model.named_modules()}


def reasons(model):
    return {layer.name: layer.note for layer in flowkern.explain(model).left}


def is_fast(layer):
    return bool(flowkern.explain(layer).replaced)


def data(dtype=torch.float32):
    return torch.randn(9, 4, dtype=dtype), torch.randn(9, CONTEXT, dtype=dtype)


# In place, and undone


def test_returns_the_model_unchanged_but_for_its_methods():
    model = sbi_flow()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    assert flowkern.accelerate(model) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert len(flowkern.explain(model).replaced) == 12  # the flow, its composite and ten layers


@pytest.mark.parametrize("name", LAYERS)
def test_restore_undoes_it_exactly(name):
    layer, inputs, context = build(name)
    before = state(layer)
    flowkern.accelerate(layer)
    assert state(layer) != before and is_fast(layer)
    assert flowkern.restore(layer) is layer
    assert state(layer) == before and not is_fast(layer)


def test_default_device_and_random_state_do_not_matter():
    layer, random_state = build("spline")[0], torch.get_rng_state()
    with torch.device("meta"):
        flowkern.accelerate(layer)
    assert is_fast(layer) and torch.equal(torch.get_rng_state(), random_state)


def test_twice_is_once():
    model = flowkern.accelerate(sbi_flow())
    before = state(model)
    assert state(flowkern.accelerate(model)) == before
    flowkern.restore(flowkern.restore(model))
    assert not flowkern.explain(model).replaced


def test_layers_deep_inside_any_module():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), sbi_flow()])})

    model = flowkern.accelerate(Wrapper())
    names = [layer.name for layer in flowkern.explain(model).replaced]
    assert names[:3] == ["parts.a.1", "parts.a.1._transform", "parts.a.1._transform._transforms.0"]


def test_layer_added_later():
    layer, other = build("affine")[0], build("spline")[0]
    model = flowkern.accelerate(CompositeTransform([layer]))
    model._transforms.append(other)
    assert not is_fast(other)
    assert is_fast(layer) and is_fast(flowkern.accelerate(model)._transforms[1])


# Copies


def assert_own_parameters(model, twin):
    """`twin` is accelerated, and runs on its own parameters only."""
    inputs, context = data()
    want = model.log_prob(inputs, context)
    torch.testing.assert_close(twin.log_prob(inputs, context), want)
    assert len(flowkern.explain(twin).replaced) == len(flowkern.explain(model).replaced) == 12
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(model.log_prob(inputs, context), want)
    assert not torch.allclose(twin.log_prob(inputs, context), want)
    flowkern.restore(twin)
    assert not flowkern.explain(twin).replaced and flowkern.explain(model).replaced


def test_deepcopy():
    model = flowkern.accelerate(sbi_flow())
    assert_own_parameters(model, copy.deepcopy(model))


def test_saved_and_loaded_whole():
    model = flowkern.accelerate(sbi_flow())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_own_parameters(model, torch.load(file, weights_only=False))


def test_state_dict_goes_both_ways():
    plain, fast = sbi_flow(), flowkern.accelerate(sbi_flow()).to(torch.float64)
    fast.load_state_dict(plain.state_dict())
    plain.double().load_state_dict(fast.state_dict())
    inputs, context = data(torch.float64)
    torch.testing.assert_close(fast.log_prob(inputs, context), plain.log_prob(inputs, context))


def test_functional_call():
    model = flowkern.accelerate(sbi_flow())
    other = {k: v + 0.1 for k, v in model.named_parameters()}
    inputs, context = data()
    changed = copy.deepcopy(model)
    changed.load_state_dict({**model.state_dict(), **other})
    # Flow has no forward of its own; its transform has.
    other = {k.removeprefix("_transform."): v for k, v in other.items()}
    got = torch.func.functional_call(model._transform, other, (inputs, context))
    torch.testing.assert_close(got, changed._transform(inputs, context))


@pytest.mark.parametrize("name", ["affine", "spline", "spline_unconditional", "cdf", "lu"])
def test_data_parallel_replica_runs_on_its_own_tensors(name):
    """DataParallel copies each module's dictionary and then sets the replica's tensors."""
    layer, inputs, context = build(name)
    flowkern.accelerate(layer)
    want = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in want.parameters():
            parameter.add_(0.1)
    replica = replicate(layer, dict(want.named_parameters()))
    for method in ("forward", "inverse"):
        got = getattr(replica, method)(inputs, context)
        torch.testing.assert_close(got, getattr(want, method)(inputs, context))


def replicate(module, tensors, prefix=""):
    """One replica as `torch.nn.parallel.replicate` builds it, with given parameters."""
    replica = module._replicate_for_data_parallel()
    for name in module._parameters:
        setattr(replica, name, tensors[prefix + name])
    for name, child in module._modules.items():
        replica._modules[name] = child and replicate(child, tensors, f"{prefix}{name}.")
    return replica


# What is left, and why


def test_explanation_of_a_mixed_model():
    layers = [
        build("affine")[0],
        RandomPermutation(5),
        PiecewiseLinearCouplingTransform(MASK, vector_net),
        AdditiveCouplingTransform(MASK, vector_net, own_spline),
    ]
    model = CompositeTransform(layers)
    assert str(flowkern.explain(model)).startswith("Could be accelerated (4):")
    why = "there is no fused kernel for this layer"
    assert str(flowkern.explain(flowkern.accelerate(model))) == (
        "Accelerated (5):\n"
        "  (the model)                            CompositeTransform             forward, inverse; 2 transforms "
        "in one call; 2 apart: there is no step for it; its transform in one call\n"
        "  _transforms.0                          AffineCouplingTransform        forward, inverse\n"
        "  _transforms.1                          RandomPermutation              within the one call of what "
        "holds it\n"
        "  _transforms.3                          AdditiveCouplingTransform      forward, inverse\n"
        "  _transforms.3.unconditional_transform  PiecewiseRationalQuadraticCDF  forward, inverse\n"
        "Not accelerated (1):\n"
        f"  _transforms.2  PiecewiseLinearCouplingTransform  {why}"
    )


def test_nothing_to_accelerate():
    model = CompositeTransform([ReversePermutation(4), LeakyReLU()])
    before = state(model)
    with pytest.warns(UserWarning, match="model is unchanged. Nothing to accelerate") as warned:
        assert flowkern.accelerate(model) is model
    assert "PiecewiseRationalQuadraticCouplingTransform" in str(warned[0].message)
    assert "there is no fused kernel for this layer" in str(warned[0].message)
    assert state(model) == before
    with pytest.warns(UserWarning, match="Nothing to accelerate in Linear"):
        flowkern.accelerate(nn.Linear(2, 2))


@pytest.mark.parametrize("function", [flowkern.accelerate, flowkern.restore, flowkern.explain])
def test_not_a_module(function):
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module or an object that holds one, got str"):
        function("model")


class Doubled(AffineCouplingTransform):
    """A user's layer with another scale."""

    def _scale_and_shift(self, transform_params):
        scale, shift = super()._scale_and_shift(transform_params)
        return 2 * scale, shift


class Named(PiecewiseRationalQuadraticCouplingTransform):
    """A user's layer that keeps the formulas."""

    def __init__(self, net):
        super().__init__(MASK, net, **TAILS)


def test_subclasses():
    changed, same = Doubled(MASK, vector_net), Named(vector_net)
    model = flowkern.accelerate(CompositeTransform([changed, same]))
    assert reasons(model) == {"_transforms.0": "Doubled overrides _scale_and_shift"}
    assert is_fast(same)


def test_method_replaced_on_an_instance():
    layer = build("affine")[0]
    layer.forward = lambda inputs, context=None: (inputs, inputs[:, 0])
    with pytest.warns(UserWarning, match="AffineCouplingTransform overrides forward"):
        flowkern.accelerate(layer)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"tails": "linear", "tail_bound": torch.tensor(3.0)}, "its tail_bound is no plain number"),
        ({"tails": "circular"}, "it has tails 'circular', which raise an error in nflows"),
        ({"tails": "linear", "min_bin_width": 0.5}, "Minimal bin width too large"),
    ],
)
def test_settings_that_nflows_refuses_or_a_kernel_cannot_take(options, reason):
    with pytest.warns(UserWarning, match=reason):
        flowkern.accelerate(spline(vector_net, **options))


# Forks, which live in another package under the same last names


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """The coupling module of a fork: nflows under another name, with `scale_activation` as in
    later versions of it."""
    root = tmp_path_factory.mktemp("fork")
    source = Path(nflows.__file__).parent
    for file in source.rglob("*.py"):
        text = re.sub(r"\b(from|import) nflows\b", r"\1 somefork.nflows", file.read_text())
        scale = "torch.sigmoid(unconstrained_scale + 2) + 1e-3"
        text = text.replace(scale, "self.scale_activation(unconstrained_scale)")
        copied = root / "somefork" / "nflows" / file.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield importlib.import_module("somefork.nflows.transforms.coupling")
    for name in [name for name in sys.modules if name.startswith("somefork")]:
        del sys.modules[name]


def test_fork_is_recognised(fork):
    layer = fork.PiecewiseRationalQuadraticCouplingTransform(MASK, vector_net)
    inputs, context = torch.rand(6, 5), torch.randn(6, CONTEXT)
    want = layer(inputs, context)
    assert is_fast(flowkern.accelerate(layer))
    torch.testing.assert_close(layer(inputs, context), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(sys.modules["somefork.nflows.transforms.base"].InputOutsideDomain):
        layer(-inputs, context)


def test_fork_with_another_formula_is_left(fork):
    default, wide, broken = (fork.AffineCouplingTransform(MASK, vector_net) for _ in range(3))
    default.scale_activation = lambda x: torch.sigmoid(x + 2) + 1e-3
    wide.scale_activation = lambda x: (F.softplus(x) + 1e-3).clamp(0, 3)
    model = flowkern.accelerate(CompositeTransform([default, wide, broken]))
    assert is_fast(default)
    assert reasons(model)["_transforms.1"] == (
        "its forward gives other numbers than the fused one "
        "(of all scale_activations, only sigmoid(u + 2) + 1e-3 is fused)"
    )
    assert reasons(model)["_transforms.2"].startswith("a trial call failed: AttributeError:")


def test_a_method_that_belongs_to_no_module_is_the_users():
    """As those of code that was run by exec: a partial in a layer's dictionary is not taken for one of accelerate's."""
    layer = AffineCouplingTransform(MASK, vector_net)
    names = {}
    exec("def forward(layer, inputs, context=None): return inputs, 0.0", names)
    names["forward"].__module__ = None
    layer.forward = functools.partial(names["forward"], layer)
    assert flowkern.restore(layer).forward is layer.__dict__["forward"]

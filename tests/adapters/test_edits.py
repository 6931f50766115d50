"""Edits of an accelerated model: each is computed as the library computes it, or `explain` tells of it."""

import contextlib
import copy
import functools

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import flowkern
from tests.adapters import autoregressive_models, nflows_models
from tests.adapters.autoregressive_models import call

MASKED = ("nflows", "nflows norm", "nflows feed-forward", "nflows spline", "normflows", "normflows spline",
          "zuko", "zuko residual", "zuko spline")  # fmt: skip
COUPLINGS = ("affine", "additive", "spline", "cdf")


def pair(name):
    """A layer, an accelerated copy that has been called, and (inputs, context)."""
    source = nflows_models if name in nflows_models.LAYERS else autoregressive_models
    plain, inputs, context = source.build(name)
    fast = flowkern.accelerate(copy.deepcopy(plain.eval()))
    assert flowkern.explain(fast).replaced and not flowkern.explain(fast).left
    call(fast, inputs, context)
    return plain, fast, inputs, context


def assert_same(fast, plain, inputs, context):
    for method in ("forward", "inverse"):
        wanted = call(getattr(plain, method), inputs, context)
        got = call(getattr(fast, method), inputs, context)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def notes(model):
    return [layer.note for layer in flowkern.explain(model).replaced]


def linears(model):
    return [m for m in model.modules() if "mask" in m._buffers and hasattr(m, "weight")]


@contextlib.contextmanager
def doubled_linears(calls):
    """A hook of all modules that doubles what linear layers give."""

    def hook(module, args, output):
        if isinstance(module, torch.nn.Linear):
            calls.append(module)
            return 2 * output
        return None

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*MASKED, "affine", "spline"])
def test_hooks_of_all_modules_are_called(name):
    plain, fast, inputs, context = pair(name)
    before, calls = call(fast, inputs, context)[0], []
    with doubled_linears(calls):
        got = call(fast, inputs, context)
        assert calls
        torch.testing.assert_close(got, call(plain, inputs, context))
        if name in MASKED:
            assert notes(fast)[-1].endswith("there are hooks of all modules")
    assert not torch.allclose(got[0], before) and "at present" not in notes(fast)[-1]


@pytest.mark.parametrize("value", [0.5, -2.0])
@pytest.mark.parametrize("name", MASKED)
def test_masks_of_other_values_than_0_and_1_are_factors(name, value):
    plain, fast, inputs, context = pair(name)
    for model in (plain, fast):
        for linear in linears(model):
            linear.mask = linear.mask * value
    assert_same(fast, plain, inputs, context)
    assert "at present" not in notes(fast)[0]


@pytest.mark.parametrize("name", ["nflows", "nflows spline", "normflows"])
def test_masks_written_to_are_seen(name):
    plain, fast, inputs, context = pair(name)
    for model in (plain, fast):
        for linear in linears(model):
            linear.mask.mul_(0.5)
    assert_same(fast, plain, inputs, context)
    for model in (plain, fast):
        linears(model)[0].mask.zero_()
    assert_same(fast, plain, inputs, context)


@pytest.mark.parametrize("name", ["nflows", "normflows", "zuko"])
@pytest.mark.parametrize("look", [flowkern.explain, flowkern.accelerate])
def test_masks_written_to_unseen_are_seen_by_explain_and_accelerate(name, look):
    """PyTorch counts no change through `.data`."""
    plain, fast, inputs, context = pair(name)
    for model in (plain, fast):
        linears(model)[1].mask.data.zero_()
    look(fast)
    assert_same(fast, plain, inputs, context)


def _doubled(module, *args, **kwargs):
    return 2 * type(module).forward(module, *args, **kwargs)


INSIDE = {
    "the network": lambda layer: layer.autoregressive_net,
    "a block": lambda layer: layer.autoregressive_net.blocks[0],
    "a masked layer": lambda layer: layer.autoregressive_net.final_layer,
    "a context layer": lambda layer: layer.autoregressive_net.context_layer,
    "a hyper-network": lambda layer: layer.layer.transforms[0].hyper,
    "a residual block": lambda layer: layer.layer.transforms[0].hyper[2],
}


@pytest.mark.parametrize(
    "name, where",
    [
        *((name, where) for name in ("nflows", "nflows spline", "normflows") for where in list(INSIDE)[:3]),
        ("nflows", "a context layer"),
        ("zuko", "a hyper-network"),
        ("zuko residual", "a residual block"),
    ],
)
def test_a_forward_put_inside_the_network_is_called(name, where):
    plain, fast, inputs, context = pair(name)
    before = call(fast, inputs, context)[0]
    for model in (plain, fast):
        changed = INSIDE[where](model)
        changed.forward = functools.partial(_doubled, changed)
    assert not torch.allclose(call(fast, inputs, context)[0], before)
    assert_same(fast, plain, inputs, context)
    assert any(note.endswith("with a forward of its own") for note in notes(fast))


FORMULAS = [
    ("nflows", "_elementwise_forward", lambda layer: layer),
    ("nflows spline", "_elementwise_forward", lambda layer: layer),
    ("normflows", "_elementwise_forward", lambda layer: layer),
    ("zuko", "meta", lambda layer: layer.layer.transforms[0]),
    ("affine", "_coupling_transform_forward", lambda layer: layer),
    ("additive", "_coupling_transform_forward", lambda layer: layer),
    ("spline", "_coupling_transform_forward", lambda layer: layer),
    ("cdf", "_spline", lambda layer: layer),
    ("lu", "logabsdet", lambda layer: layer),
]


@pytest.mark.parametrize("name, method, where", FORMULAS)
def test_a_method_put_on_the_layer_is_called(name, method, where):
    plain, fast, inputs, context = pair(name)
    calls = []
    for model in (plain, fast):
        layer = where(model)
        original = getattr(layer, method)

        def put(*args, original=original, **kwargs):
            calls.append(method)
            return original(*args, **kwargs)

        setattr(layer, method, put)
    for model in (plain, fast):
        calls.clear()
        call(model.inverse if name == "lu" else model, inputs, context)
        assert calls
    assert_same(fast, plain, inputs, context)
    assert any(f"at present computed by its own code: it has {method} of its own" in note for note in notes(fast))


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_forward_put_on_the_layer_is_the_one_that_is_called(name):
    _, fast, inputs, context = pair(name)
    fast.forward = lambda inputs, context=None: "own"
    assert call(fast, inputs, context) == "own"

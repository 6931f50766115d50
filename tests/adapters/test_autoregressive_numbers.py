"""Accelerated autoregressive layers against unmodified ones: values, log-dets and gradients."""

import copy
import functools

import pytest
import torch

import flowkern
from tests.adapters import autoregressive_models as models
from tests.adapters.autoregressive_models import LAYERS, UNIT, build, call, randomised


def evaluate(layer, inputs, context, inverse=False):
    """y, logabsdet, and the gradients of a fixed mixture of both, by name."""
    inputs = inputs.detach().requires_grad_()
    context = None if context is None else context.detach().requires_grad_()
    y, logabsdet = call(layer.inverse if inverse else layer, inputs, context)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (weights * y.tanh()).sum() + (logabsdet * weights[..., 0]).sum()
    variables = {"inputs": inputs, "context": context, **dict(layer.named_parameters())}
    variables = {name: v for name, v in variables.items() if v is not None}
    grads = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
    return {"y": y.detach(), "logabsdet": logabsdet.detach(), **dict(zip(variables, grads))}


def assert_equal(got, wanted, **tolerance):
    for quantity, want in wanted.items():
        # The kernel gives zeros where autograd finds no path.
        if want is None:
            assert got[quantity] is None or not got[quantity].any(), quantity
        else:
            torch.testing.assert_close(got[quantity], want, **tolerance, msg=lambda m: f"{quantity}: {m}")


@pytest.mark.parametrize("name", LAYERS)
def test_float64_is_equal(name, inverse):
    layer, inputs, context = build(name)
    plain, fast = layer.eval(), flowkern.accelerate(copy.deepcopy(layer).eval())
    assert flowkern.explain(fast).replaced and not flowkern.explain(fast).left
    wanted = evaluate(plain, inputs, context, inverse)
    assert_equal(evaluate(fast, inputs, context, inverse), wanted, rtol=1e-7, atol=1e-9)
    with torch.no_grad():  # where kernels take the context as it is
        y, logabsdet = call(fast.inverse if inverse else fast, inputs, context)
    values = {name: wanted[name] for name in ("y", "logabsdet")}
    assert_equal({"y": y, "logabsdet": logabsdet}, values, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_training_mode_is_equal(name, inverse):
    """Also where the peer computes it: with the statistics of the batch, which it updates."""
    layer, inputs, context = build(name)
    fast = flowkern.accelerate(copy.deepcopy(layer))
    wanted = evaluate(layer, inputs, context, inverse)
    assert_equal(evaluate(fast, inputs, context, inverse), wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fast.state_dict(), layer.state_dict())


@pytest.mark.parametrize("name", [name for name in LAYERS if "without" not in name])
def test_float32_is_near_float64(name, inverse):
    layer, inputs, context = build(name)
    wanted = call(layer.eval().inverse if inverse else layer, inputs, context)
    fast = flowkern.accelerate(copy.deepcopy(layer).float())
    context = None if context is None else context.float()
    got = call(fast.inverse if inverse else fast, inputs.float(), context)
    for g, w in zip(got, wanted):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4)


SMALL = {
    "nflows": lambda d, h: models.nflows_affine(d, h, context_features=2),
    "nflows spline": lambda d, h: models.nflows_spline(d, h, context_features=2, **models.TAILS),
    "normflows": lambda d, h: models.normflows_affine(d, h, context_features=2),
    "zuko": lambda d, h: models.zuko_maf(d, 2, hidden_features=(h, h)),
    "zuko spline": lambda d, h: models.zuko_nsf(d, 2, hidden_features=(h,)),
}


@pytest.mark.parametrize("hidden", [1, 2, 7])
@pytest.mark.parametrize("features", [1, 2, 3, 9])
@pytest.mark.parametrize("name", SMALL)
def test_few_features_and_few_units(name, features, hidden, inverse):
    if "zuko" in name and features == 1:
        pytest.skip("of one feature zuko builds an element-wise layer, which is not masked")
    layer = randomised(SMALL[name](features, hidden).double()).eval()
    fast = flowkern.accelerate(copy.deepcopy(layer))
    inputs, context = torch.randn(4, features).double(), torch.randn(4, 2).double()
    wanted = evaluate(layer, inputs, context, inverse)
    assert_equal(evaluate(fast, inputs, context, inverse), wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in UNIT])
def test_extreme_inputs(name, inverse):
    """As the peer's, and a NaN stays in its row. In bins as narrow as they may be, the log-det of
    a peer's inverse spline is a matter of luck, or NaN: there it must be finite."""
    layer, inputs, context = build(name)
    inputs[0] = 1e12
    inputs[1, 2] = -1e12
    fast = flowkern.accelerate(copy.deepcopy(layer.eval()))
    y, logabsdet = call(fast.inverse if inverse else fast, inputs, context)
    wanted = call(layer.inverse if inverse else layer, inputs, context)
    torch.testing.assert_close(y, wanted[0], rtol=1e-6, atol=1e-6)
    assert logabsdet.isfinite().all()
    if not any(kind in name for kind in ("spline", "circular", "wrapper")):
        torch.testing.assert_close(logabsdet, wanted[1], rtol=1e-6, atol=1e-6)
    inputs[2, 1] = torch.nan
    y, logabsdet = call(fast.inverse if inverse else fast, inputs, context)
    assert y[2].isnan().any() and y[3:].isfinite().all() and logabsdet[3:].isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch(name, inverse):
    layer, inputs, context = build(name)
    fast = flowkern.accelerate(layer.eval())
    context = None if context is None else context[:0]
    y, logabsdet = call(fast.inverse if inverse else fast, inputs[:0], context)
    assert y.shape == inputs[:0].shape and logabsdet.shape == (0,)


def test_second_derivatives(inverse):
    layer, inputs, context = build("nflows feed-forward")
    fast = flowkern.accelerate(copy.deepcopy(layer))

    def hessian(model):
        def function(inputs):
            y, logabsdet = (model.inverse if inverse else model)(inputs, context[:2])
            return y.sin().sum() + logabsdet.sum()

        return torch.autograd.functional.hessian(function, inputs[:2])

    torch.testing.assert_close(hessian(fast), hessian(layer), rtol=1e-8, atol=1e-8)


def test_a_context_layer_with_a_forward_of_its_own(inverse):
    for name in ("nflows", "nflows feed-forward"):
        layer, inputs, context = build(name)
        plain, fast = layer.eval(), flowkern.accelerate(copy.deepcopy(layer).eval())
        for model in (plain, fast):
            given = model.autoregressive_net.context_layer
            given.forward = functools.partial(_doubled, given)
        wanted = evaluate(plain, inputs, context, inverse)
        assert_equal(evaluate(fast, inputs, context, inverse), wanted, rtol=1e-7, atol=1e-9)


def _doubled(layer, context):
    return 2 * type(layer).forward(layer, context)


def test_autocast_leaves_a_context_in_float32(inverse):
    """With and without a gradient; an embedding may have made half precision of it."""
    layer, inputs, context = build("nflows feed-forward")
    fast, inputs, context = flowkern.accelerate(layer.eval().float()), inputs.float(), context.bfloat16()
    method = fast.inverse if inverse else fast
    wanted = method(inputs, context.float())
    for keep in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(keep):
            torch.testing.assert_close(method(inputs, context), wanted)

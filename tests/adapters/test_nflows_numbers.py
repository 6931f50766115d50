"""Accelerated nflows layers against unmodified ones: values, log-dets and gradients."""

import copy

import pytest
import torch
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from torch import nn

import flowkern
from flowkern.report.memory import peak_memory
from tests.adapters.nflows_models import (
    BOUND,
    CONTEXT,
    LAYERS,
    TAILS,
    build,
    evaluate,
    pair,
    sbi_flow,
)

ROWS, KNOTS = 20_000, 10


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


@pytest.mark.parametrize("name", LAYERS)
def test_float64_is_equal(name, inverse):
    layer, inputs, context = build(name)
    plain, fast = (evaluate(model, inputs, context, inverse) for model in pair(layer))
    for quantity, want in plain.items():
        torch.testing.assert_close(fast[quantity], want, rtol=1e-8, atol=1e-8, msg=quantity)


def assert_as_exact(ours, theirs, truth, factor):
    """The error of ours against truth is at most `factor` of that of nflows in the same precision.

    Compared where nine tenths of the elements lie: the rest is luck at knots and steep slopes.
    """
    error, allowed = ((got - truth).abs().flatten().quantile(0.9) for got in (ours, theirs))
    assert error <= factor * allowed + torch.finfo(ours.dtype).eps * truth.abs().mean()


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0, 6.0])
@pytest.mark.parametrize("name", ["affine", "spline", "spline_unit", "image_spline"])
def test_float32_is_as_exact_as_nflows(name, spread):
    layer, inputs, context = build(name, spread, torch.float32)
    plain, fast = (evaluate(model, inputs, context) for model in pair(layer))
    context = None if context is None else context.double()
    truth = evaluate(layer.double(), inputs.double(), context)
    # Not the conditioner's parameters: their gradients sum over rows, so that one row decides.
    for quantity in {"y", "logabsdet", "inputs", "context"} & truth.keys():
        assert_as_exact(fast[quantity], plain[quantity], truth[quantity], factor=2)


class Table(nn.Module):
    """A conditioner that ignores its input: each row has its own raw parameters."""

    def __init__(self, params):
        super().__init__()
        self.params = nn.Parameter(params)

    def forward(self, inputs, context=None):
        return self.params.clone()


@pytest.fixture(scope="module", params=[0.5, 1.0, 2.0, 4.0, 6.0])
def table(request):
    """A spline layer of independent random splines, and points inside its interval and beyond.

    One feature is transformed, so that logabsdet is known for every spline.
    """
    generator = torch.Generator().manual_seed(0)
    params = request.param * torch.randn(ROWS, 3 * KNOTS - 1, generator=generator)
    points = (2 * torch.rand(ROWS, 2, generator=generator) - 1) * 1.1 * BOUND
    return PiecewiseRationalQuadraticCouplingTransform(
        [0, 1], lambda *_: Table(params), num_bins=KNOTS, **TAILS
    ), points


def test_float32_forward_of_wide_splines(table):
    layer, points = table
    plain, fast = (evaluate(model, points, None) for model in pair(layer))
    truth = evaluate(copy.deepcopy(layer).double(), points.double(), None)
    for quantity, want in truth.items():
        assert_as_exact(fast[quantity], plain[quantity], want, factor=1.05)


def test_float32_inverse_of_wide_splines(table):
    """f(f⁻¹(y)) = y to the roundings of the knots and of x, where nflows loses all digits or stops.

    x itself is ill-conditioned (slopes down to 1e-3), so it is the residual that is bounded; the
    log-det is bounded by the error of nflows' own forward log-det.
    """
    layer, points = table
    plain, fast = pair(layer)
    truth = copy.deepcopy(layer).double()
    with torch.no_grad():
        x, logabsdet = fast.inverse(points)
        again, slope = truth(x.double())
        rounding = torch.finfo(torch.float32).eps * BOUND * (1 + slope.exp())
        assert ((again - points)[:, 1].abs() <= KNOTS * rounding).all()
        error = (logabsdet - truth.inverse(points.double())[1]).abs().mean()
        assert error <= 2 * (plain(points)[1] - truth(points.double())[1]).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_takes_the_same_course(dtype):
    data, context = torch.randn(64, 4, dtype=dtype), torch.randn(64, CONTEXT, dtype=dtype)

    def losses(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(50):
            loss = -model.log_prob(data, context).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach()

    plain, fast = (torch.stack(list(losses(model))) for model in pair(sbi_flow(dtype=dtype)))
    assert plain[-1] < plain[0] - 0.5
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_samples_are_equal():
    context = torch.randn(3, CONTEXT, dtype=torch.float64)
    samples = []
    for model in pair(sbi_flow(dtype=torch.float64)):
        torch.manual_seed(1)
        samples.append(model.sample_and_log_prob(20, context))
    torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def test_backends_agree(backend):
    plain, fast = pair(sbi_flow(dtype=torch.float64))
    inputs, context = (torch.randn(9, n, dtype=torch.float64) for n in (4, CONTEXT))
    with flowkern.backend(backend):
        torch.testing.assert_close(fast.log_prob(inputs, context), plain.log_prob(inputs, context))


def test_training_step_needs_less_memory():
    """The peak of torch's allocator, which counts saved tensors, intermediates and gradients."""

    def step(model):
        return lambda: model.log_prob(inputs, context).mean().backward()

    inputs, context = torch.randn(512, 4), torch.randn(512, CONTEXT)
    plain, fast = (peak_memory(step(model)) for model in pair(sbi_flow()))
    assert 0 < fast < 0.7 * plain  # measured: 0.59; what is left is mostly the conditioners'

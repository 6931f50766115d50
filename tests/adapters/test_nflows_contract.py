"""What an accelerated layer keeps of nflows beside its numbers: errors, shapes, warnings."""

import pytest
import torch
from nflows.transforms import (
    AffineCouplingTransform,
    InputOutsideDomain,
    LULinear,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
)

import flowkern
from tests.adapters.nflows_models import (
    BOUND,
    CONTEXT,
    FEATURES,
    IMAGE,
    IMAGE_LAYERS,
    LAYERS,
    MASK,
    TAILS,
    UnscaledNet,
    build,
    image_net,
    pair,
    sbi_flow,
    spline,
    vector_net,
)

COUPLINGS = [name for name in LAYERS if "cdf" not in name and name != "lu"]


@pytest.mark.parametrize("name", COUPLINGS)
def test_dimensions_are_checked_as_by_nflows(name):
    for model in pair(build(name)[0]):
        for call in (model, model.inverse):
            with pytest.raises(ValueError, match=r"^Inputs must be a 2D or a 4D tensor\.$"):
                call(torch.rand(2, FEATURES, 3))
            with pytest.raises(ValueError, match=r"^Expected features = 5, got 6\.$"):
                call(torch.rand(2, 6))


@pytest.mark.parametrize("name", ["spline_unit", "spline_unit_unconditional", "cdf_unit"])
@pytest.mark.parametrize("outside", [-1e-3, 1.001])
def test_inputs_outside_the_domain(name, outside):
    layer, inputs, context = build(name)
    inputs[3, 2] = outside
    for model in pair(layer):
        for call in (model, model.inverse):
            with pytest.raises(InputOutsideDomain):
                call(inputs, context)


def test_wrong_shapes_are_named():
    layer = flowkern.accelerate(PiecewiseRationalQuadraticCDF(IMAGE, **TAILS))
    with pytest.raises(ValueError, match=r"\(batch, 5, 4, 3\), got \(2, 60\)"):
        layer(torch.rand(2, 60))
    layer = flowkern.accelerate(AffineCouplingTransform(MASK, lambda i, o: UnscaledNet(i, o)))
    layer.transform_net = UnscaledNet(2, 7)
    with pytest.raises(ValueError, match="transform_net: expected 6 outputs per sample, got 7"):
        layer(torch.rand(2, FEATURES))


def test_unscaled_conditioner_warns():
    for model in pair(spline(UnscaledNet, **TAILS)):
        with pytest.warns(UserWarning, match="Inputs to the softmax are not scaled down"):
            model(torch.rand(2, FEATURES))


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch(name):
    layer, inputs, context = build(name)
    flowkern.accelerate(layer)
    for call in (layer, layer.inverse):
        y, logabsdet = call(inputs[:0], None if context is None else context[:0])
        assert y.shape == inputs[:0].shape and logabsdet.shape == (0,)


@pytest.mark.parametrize("name", ["spline", "spline_unconditional", "image_spline", "cdf"])
def test_all_inputs_in_the_tails(name):
    layer, inputs, context = build(name, spread=6.0)
    flowkern.accelerate(layer)
    far = inputs.sign() * (BOUND + 1e3 * inputs.abs())
    far.requires_grad_()
    for call in (layer, layer.inverse):
        y, logabsdet = call(far, context)
        assert torch.equal(y, far) and not logabsdet.any()
        grads = torch.autograd.grad(y.sum() + logabsdet.sum(), [far, *layer.parameters()], allow_unused=True)
        assert torch.equal(grads[0], torch.ones_like(far))
        assert not any(grad.any() for grad in grads[1:] if grad is not None)


def test_non_finite_inputs_stay_in_their_row():
    layer, inputs, context = build("spline")
    clean = flowkern.accelerate(layer)(inputs, context)
    inputs[2, 0], inputs[5, 2], inputs[7, 4] = torch.nan, torch.inf, -torch.inf
    y, logabsdet = layer(inputs, context)
    rows = [i for i in range(len(y)) if i not in (2, 5, 7)]
    assert torch.equal(y[rows], clean[0][rows]) and torch.equal(logabsdet[rows], clean[1][rows])
    assert y[2, 0].isnan() and y[5, 2] == torch.inf and y[7, 4] == -torch.inf


def test_settings_are_read_at_every_call():
    """As with nflows, whose users change them on a built layer."""
    layer, inputs, context = build("spline")
    plain, fast = pair(layer)
    for model in (plain, fast):
        model.tail_bound, model.min_bin_width = 2.0, 0.1
        model.transform_net.hidden_features = 4
    torch.testing.assert_close(fast(inputs, context), plain(inputs, context))


def test_logabsdet_may_be_changed_in_place():
    """`CompositeTransform` and users of nflows add to it."""
    for name in ("affine", "spline", "spline_unconditional", "image_spline", "cdf", "lu"):
        layer, inputs, context = build(name)
        flowkern.accelerate(layer)
        for call in (layer, layer.inverse):
            _, logabsdet = call(inputs, context)
            logabsdet += 1.0
            logabsdet.sum().backward()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_images_keep_their_memory_format(name, memory_format):
    layer, inputs, context = build(name)
    inputs = inputs.contiguous(memory_format=memory_format)
    plain, fast = pair(layer)
    for call in ("forward", "inverse"):
        y, want = (getattr(model, call)(inputs)[0] for model in (fast, plain))
        assert y.stride() == want.stride() == inputs.stride()


@pytest.mark.parametrize("name", ["affine", "spline", "image_spline", "cdf"])
def test_strided_inputs(name):
    layer, inputs, context = build(name)
    flowkern.accelerate(layer)
    wide = torch.stack((inputs, inputs), dim=-1)
    torch.testing.assert_close(layer(wide[..., 0], context), layer(inputs, context))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """The conditioner runs in half precision, the spline does not; nflows raises there."""
    model = flowkern.accelerate(spline(vector_net, **TAILS))
    inputs, context = torch.randn(50, FEATURES), torch.randn(50, CONTEXT)
    want = model(inputs, context)
    with torch.autocast("cpu", dtype):
        y, logabsdet = model(inputs, context)
        (y.sum() + logabsdet.sum()).backward()
    assert y.dtype == logabsdet.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close((y, logabsdet), want, rtol=0.05, atol=0.05)


def test_autocast_of_a_whole_flow():
    model = flowkern.accelerate(sbi_flow())
    inputs, context = torch.randn(20, 4), torch.randn(20, CONTEXT)
    want = model.log_prob(inputs, context)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.log_prob(inputs, context), want, rtol=0.05, atol=0.2)


def test_lu_caches_as_before():
    layer = flowkern.accelerate(LULinear(4, using_cache=True, identity_init=False)).eval()
    inputs = torch.randn(6, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer.inverse(layer(inputs)[0])[0], inputs)
        layer.upper_entries.add_(1.0)
        torch.testing.assert_close(layer.inverse(layer(inputs)[0])[0], inputs)


@pytest.mark.parametrize("inputs", [torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 3, 4)])
def test_an_inverse_of_lu_refuses_what_nflows_refuses(inputs):
    for model in pair(LULinear(4, identity_init=False)):
        with pytest.raises(RuntimeError, match="the same dtype|<= 2 dimensions"):
            model.inverse(inputs)


def test_empty_identity_half():
    """All features transformed: the conditioner sees no input, but context."""
    layer = AffineCouplingTransform([1] * FEATURES, vector_net).double()
    inputs, context = (torch.randn(7, n, dtype=torch.float64) for n in (FEATURES, CONTEXT))
    for got, want in zip(*(model(inputs, context) for model in pair(layer))):
        torch.testing.assert_close(got, want)


def test_glow_like_image_coupling():
    mask = [1] * 6 + [0] * 6
    layer = PiecewiseRationalQuadraticCouplingTransform(mask, image_net, num_bins=4, **TAILS)
    inputs = torch.randn(3, 12, 8, 8)
    for got, want in zip(*(model(inputs) for model in pair(layer))):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)

"""Inputs at the edge of what floats hold: properties over drawn examples, and NaN and infinity."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flowkern
from flowkern.ops import ScaleMap
from tests.cases.coupling import AFFINES, SPLINES, check_at, check_gradients_fit, cotangents, evaluate, expected
from tests.conftest import RUNNABLE

SPLINE_NAMES = ("k1", "k2", "k8", "k33", "circular", "none", "softclip", "bounds")
# Maps whose scale no float32 parameter can send to 0 or infinity.
AFFINE_NAMES = ("additive", "softclip", "tanh", "atan", "sigmoid")
NAN, INF = math.nan, math.inf


# --- properties ----------------------------------------------------------------------------------

raw = st.sampled_from([0.0, -0.0, 1e-30, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, 1e30, -1e30])
places = st.lists(st.tuples(st.integers(0, 10**6), raw), max_size=40)


def drawn(case, spread, seed, places, special_x):
    """The case's tensors with some raw parameters replaced, and x in row 0 by special values."""
    x, params = replace(case, spread=spread).tensors(torch.float32, seed=seed)
    for at, value in places:
        params.view(-1)[at % params.numel()] = value
    x[0] = special_x
    return x, params


@given(
    st.sampled_from(RUNNABLE), st.sampled_from(SPLINE_NAMES), st.booleans(), st.floats(0.5, 6),
    st.integers(0, 10**6), places, st.sampled_from([0.0, 1.0, -1.0, 0.999999, 1e-30]),
)  # fmt: skip
@settings(max_examples=150)
def test_spline_agrees_and_is_finite(backend, name, inverse, spread, seed, places, at):
    """x on the ends of the interval, and bins as narrow as the minima and the floats allow."""
    case = SPLINES[name]
    x, params = drawn(case, spread, seed, places, at * torch.as_tensor(case.options["bound"]))
    check_at(case, backend, x, params, inverse=inverse)
    result = evaluate(case, x, params, backend=backend, inverse=inverse)
    assert all(t.isfinite().all() for t in result)


@given(
    st.sampled_from(RUNNABLE), st.sampled_from(AFFINE_NAMES), st.booleans(), st.floats(0.5, 6),
    st.integers(0, 10**6), places, st.sampled_from([0.0, -0.0, 1e-30, 1e20, -1e20]),
)  # fmt: skip
@settings(max_examples=150)
def test_affine_agrees_and_is_finite(backend, name, inverse, spread, seed, places, at):
    case = AFFINES[name]
    x, params = drawn(case, spread, seed, places, at)
    check_at(case, backend, x, params, inverse=inverse)
    result = evaluate(case, x, params, backend=backend, inverse=inverse)
    assert all(t.isfinite().all() for t in result)


@given(
    st.sampled_from(RUNNABLE), st.sampled_from(SPLINE_NAMES), st.floats(0.5, 6),
    st.integers(0, 10**6), places,
)  # fmt: skip
@settings(max_examples=100)
def test_spline_rises_in_float32(backend, name, spread, seed, places):
    """However narrow the bins, y falls by no more than its rounding and stays in its interval."""
    case = replace(SPLINES[name], batch=(200,))
    x, params = drawn(case, spread, seed, places, 0.0)
    x = x.clamp(-1, 1) if name in ("none", "bounds") else x
    x = x.sort(dim=0).values
    for inverse in (False, True):
        with flowkern.backend(backend):
            y, _ = case(x, params[:1].expand_as(params), inverse=inverse)
        bound = torch.as_tensor(case.options["bound"])
        assert (y.diff(dim=0) >= -4e-7 * bound).all()
        inside = x.abs() <= bound
        assert (torch.where(inside, y, 0.0).abs() <= bound).all()


# What autograd makes of the reference overflows earlier.
KERNELS = [name for name in RUNNABLE if name != "reference"]
SATURATING = [SPLINES[name] for name in SPLINE_NAMES] + [AFFINES[name] for name in AFFINE_NAMES]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", SATURATING, ids=[f"{c.op}-{c.name}" for c in SATURATING])
def test_gradients_are_finite_wherever_they_fit(kernels, case, inverse):
    """No product on the way to a feature's gradients is larger than they are, however large the cotangents."""
    check_gradients_fit(replace(case, batch=(400,)), kernels, inverse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_steep_knot_takes_a_large_cotangent(backend, dtype):
    """A slope of 1e12, where products with the cotangent before the division by it overflow in float32."""
    params = torch.zeros(1, 1, 23, dtype=dtype)
    params[..., 1] = params[..., 9] = 400.0
    params[..., 16] = 1e12
    x, grads = torch.full((1, 1), -1.1, dtype=dtype), (torch.full((1, 1), 1e30), torch.ones(1))
    got = evaluate(SPLINES["k8"], x, params, backend=backend, grads=[g.to(dtype) for g in grads])
    want = torch.tensor(-2.979000012183673e18, dtype=dtype)
    torch.testing.assert_close(got.grad_params[0, 0, 17], want, rtol=1e-5, atol=0)
    assert got.grad_params.isfinite().all()
    assert (got.grad_params[0, 0].abs() <= 1.001 * want.abs()).all()


@pytest.mark.parametrize("slope", [1e18, 1e22, 1e30])
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_inverse_of_a_steep_knot(kernels, slope):
    """Of a slope whose square overflows in float32."""
    case = replace(SPLINES["k8"], bins=2)
    y, params = torch.tensor([[-0.5], [0.5]]), torch.zeros(2, 1, 5)
    params[..., 4] = slope
    grads = torch.ones(2, 1), torch.ones(2)
    got = evaluate(case, y, params, backend=kernels, inverse=True, grads=grads)
    want = expected(case, y, params, inverse=True, grads=grads)
    torch.testing.assert_close([*got], [w.float() for w in want], rtol=1e-5, atol=1e-6)


# --- NaN and infinity ----------------------------------------------------------------------------

CASES = [AFFINES["sigmoid"], AFFINES["exp"], SPLINES["k8"], SPLINES["circular"], SPLINES["none"]]
CASES += [SPLINES["softclip"]]


@pytest.mark.parametrize("case", CASES, ids=[f"{c.op}-{c.name}" for c in CASES])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_row_spoils_no_other(backend, case, bad, inverse):
    """Whatever stands in row 7, the other 62 are bit for bit what they were."""
    x, params = case.tensors(inverse=inverse)
    want = evaluate(case, x, params, backend=backend, inverse=inverse)
    grads = cotangents(want.y, want.logabsdet)
    rows = torch.arange(len(x)) != 7
    for spoil in ("x", "params", "grad_y", "grad_logabsdet"):
        tensors = {"x": x, "params": params, "grad_y": grads[0], "grad_logabsdet": grads[1]}
        tensors[spoil] = tensors[spoil].clone()
        tensors[spoil][7] = bad
        got = evaluate(
            case, tensors["x"], tensors["params"], backend=backend, inverse=inverse,
            grads=(tensors["grad_y"], tensors["grad_logabsdet"]),
        )  # fmt: skip
        for quantity, g, w in zip(got._fields, got, want):
            assert torch.equal(g[rows], w[rows]), f"{spoil}: {quantity}"


@pytest.mark.parametrize("case", CASES, ids=[f"{c.op}-{c.name}" for c in CASES])
def test_nan_stays_nan(backend, case, inverse):
    """A NaN in x is a NaN in y at the same place; in the parameters, in y and in the log-det."""
    x, params = case.tensors(inverse=inverse)
    x[:, 1] = 0.75  # inside every interval
    x[7, 2] = NAN
    params[9, 1] = NAN
    result = evaluate(case, x, params, backend=backend, inverse=inverse)
    place = torch.zeros_like(x, dtype=torch.bool)
    place[7, 2] = place[9, 1] = True
    assert torch.equal(result.y.isnan(), place)
    assert result.logabsdet[9].isnan()


@pytest.mark.parametrize("name", ["k1", "k8", "k64", "circular", "softclip", "bounds"])
def test_infinity_follows_the_tails(backend, name, inverse):
    case = SPLINES[name]
    x, params = case.tensors()
    x[:20], x[20:40], x[40:] = INF, -INF, 3e38
    ones = (torch.ones_like(x), torch.ones(len(x)))
    result = evaluate(case, x, params, backend=backend, inverse=inverse, grads=ones)
    assert torch.equal(result.y, x)
    assert not result.logabsdet.any()
    assert torch.equal(result.grad_x, torch.ones_like(x))
    assert not result.grad_params.any()


def test_outside_a_bounded_domain_is_nan(backend, inverse):
    """Without tails there is no value outside; a row inside is not touched by it."""
    case = SPLINES["box"]
    x, params = case.tensors(inverse=inverse)
    x[3, 1], x[4, 2], x[5, 0] = 10.0, INF, NAN
    result = evaluate(case, x, params, backend=backend, inverse=inverse)
    place = torch.zeros_like(x, dtype=torch.bool)
    place[3, 1] = place[4, 2] = place[5, 0] = True
    assert torch.equal(result.y.isnan(), place)
    assert torch.equal(result.logabsdet.isnan(), place.any(-1))


@pytest.mark.parametrize("kind", ["sigmoid", "reciprocal_sigmoid", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_that_underflow_keep_their_log_det(backend, kind, dtype):
    """With b = 0 these maps are exp(v + a) far to the left, and 1/exp(v + a) the reciprocal one."""
    scale_map = ScaleMap(kind, a=0.0, b=0.0)
    raw = torch.tensor([-30.0, -120.0, -1000.0, -1e30], dtype=dtype)
    x, params = torch.ones_like(raw)[:, None], torch.stack((torch.zeros_like(raw), raw), -1)[:, None]
    params = params.requires_grad_()
    with flowkern.backend(backend):
        case = replace(AFFINES["exp"], options={"scale_map": scale_map})
        y, logabsdet = case(x, params, inverse=kind == "reciprocal_sigmoid")
    grad = torch.autograd.grad((y, logabsdet), params, (torch.zeros_like(y), torch.ones_like(raw)))[0]
    torch.testing.assert_close(logabsdet, raw)
    torch.testing.assert_close(grad[:, 0], torch.tensor([[0.0, 1.0]], dtype=dtype).expand(4, 2))


@pytest.mark.parametrize("name", ["k8", "circular", "none"])
def test_minus_infinity_as_a_parameter(backend, name, inverse):
    """A bin switched off by −inf has its minimum width, and every gradient is finite."""
    case = SPLINES[name]
    x, params = case.tensors(inverse=inverse)
    params[:, :, 2] = params[:, :, 10] = params[:, :, 18] = -INF
    result = evaluate(case, x, params, backend=backend, inverse=inverse)
    assert all(t.isfinite().all() for t in result)
    close = evaluate(case, x, params.clamp(min=-1e4), backend=backend, inverse=inverse)
    assert all(torch.equal(*pair) for pair in zip(result, close))


@pytest.mark.parametrize("name", ["k8", "circular", "softclip"])
def test_saturated_parameters_outside_have_no_gradient(backend, name):
    """Outside, the parameters have no gradient, even where the branch not taken is not finite."""
    case = SPLINES[name]
    x, params = case.tensors()
    x[:] = torch.where(x < 0, -100.0, 100.0)
    params[:] = torch.tensor([1e38, -1e38]).repeat(params.shape[-1])[: params.shape[-1]]
    result = evaluate(case, x, params, backend=backend)
    assert torch.equal(result.y, x)
    assert not result.grad_params.any()


@pytest.mark.parametrize("width", [513, 519, 1027])
def test_long_rows_with_a_short_end(backend, width, inverse):
    """A row's log-det, summed in parts of 512 features, is that of both its pieces; gradients are theirs."""
    for case in (AFFINES["exp"], replace(SPLINES["k8"], bins=2)):
        long = replace(case, batch=(3,), width=width, features=width)
        for dtype in (torch.float64, torch.float32):
            tensors = *long.tensors(dtype), torch.randn(3, width, dtype=dtype), torch.randn(3, dtype=dtype)
            whole = _result(long, backend, inverse, *tensors)
            pieces = [
                _result(long, backend, inverse, *(t[:, at] for t in tensors[:3]), tensors[3])
                for at in (slice(512), slice(512, None))
            ]
            rtol = 1e-12 if dtype == torch.float64 else 1e-5
            logabsdet = sum(piece.logabsdet for piece in pieces)
            torch.testing.assert_close(whole.logabsdet, logabsdet, rtol=rtol, atol=width * rtol)
            for quantity in ("y", "grad_x", "grad_params"):
                of_pieces = torch.cat([getattr(piece, quantity) for piece in pieces], 1)
                torch.testing.assert_close(getattr(whole, quantity), of_pieces, rtol=rtol, atol=rtol)


def _result(case, backend, inverse, x, params, *grads):
    return evaluate(case, x, params, backend=backend, inverse=inverse, grads=grads)

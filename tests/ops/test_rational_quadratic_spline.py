"""The rational-quadratic spline: equal to its float64 reference and its peers; clear errors."""

from dataclasses import replace

import normflows.utils.splines
import pytest
import torch
import zuko
from nflows.transforms.splines.rational_quadratic import (
    rational_quadratic_spline as nflows_spline,
)
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

import flowkern
from flowkern.ops import SoftclipKnots, SoftplusKnots, rational_quadratic_spline
from tests import tolerances
from tests.cases.coupling import BOX, SPLINES, Case, check, cotangents, evaluate
from tests.conftest import RUNNABLE
from tests.tolerances import assert_same

HALVES = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float64),
]


@pytest.mark.parametrize("name", SPLINES)
def test_agrees_with_the_reference(backend, name):
    for dtype in (torch.float64, torch.float32):
        for inverse in (False, True):
            check(SPLINES[name], backend, dtype, inverse=inverse)


@pytest.mark.parametrize("name", ["k1", "k8", "k64", "circular", "none", "softclip", "long"])
@pytest.mark.parametrize("spread", [0.5, 3.0, 6.0])
def test_agrees_at_every_spread(backend, name, spread):
    for inverse in (False, True):
        for seed in (2, 3):
            case = replace(SPLINES[name], spread=spread)
            check(case, backend, torch.float32, inverse=inverse, seed=seed)


@pytest.mark.parametrize("dtype, params_dtype", HALVES)
def test_mixed_dtypes(backend, dtype, params_dtype):
    """y has x's dtype, the log-det the one computed in, and gradients that of their input."""
    for name in ("k8", "mask", "bounds_index"):
        for inverse in (False, True):
            check(SPLINES[name], backend, dtype, params_dtype=params_dtype, inverse=inverse)
    x, params = SPLINES["mask"].tensors(dtype, params_dtype=params_dtype)
    result = evaluate(SPLINES["mask"], x, params, backend=backend)
    wide = torch.float64 if params_dtype == torch.float64 else torch.float32
    assert [t.dtype for t in result] == [dtype, wide, dtype, params_dtype]


def _split(params):
    bins = (params.shape[-1] + 1) // 3
    return params[..., :bins], params[..., bins : 2 * bins], params[..., 2 * bins :]


def _summed(function, **options):
    """A peer's function of (x, widths, heights, slopes), with its log-det summed as ours is."""

    def peer(x, params, inverse):
        y, logabsdet = function(x, *_split(params), inverse=inverse, **options)
        return y, logabsdet.sum(-1)

    return peer


def _zuko(x, params, inverse):
    transform = zuko.transforms.MonotonicRQSTransform(*_split(params), bound=3.0)
    y, logabsdet = (transform.inv if inverse else transform).call_and_ladj(x)
    return y, logabsdet.sum(-1)


_normflows = normflows.utils.splines.unconstrained_rational_quadratic_spline
_BOUNDS = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
# name: (our options, 3K + this many parameters, the peer)
PEERS = {
    "nflows": (
        {"bound": 3.0}, -1, _summed(unconstrained_rational_quadratic_spline, tail_bound=3.0),
    ),
    "nflows, other minima": (
        {"knot_map": SoftplusKnots(min_width=0.02, min_height=0.01, min_slope=0.1)}, -1,
        _summed(unconstrained_rational_quadratic_spline, min_bin_width=0.02, min_bin_height=0.01,
                min_derivative=0.1),
    ),
    "nflows, no tails": (
        {"tails": "none", "bound": (-1.0, 2.0, -0.5, 1.5)}, 1,
        # Its inverse wants y in [left, right], so that y's interval lies within it here.
        _summed(nflows_spline, left=-1.0, right=2.0, bottom=-0.5, top=1.5),
    ),
    "nflows, scaled": (
        {"bound": 3.0, "knot_map": SoftplusKnots(scale=0.25)}, -1,
        lambda x, p, inverse: _summed(unconstrained_rational_quadratic_spline, tail_bound=3.0)(
            x, torch.cat((0.25 * p[..., :16], p[..., 16:]), dim=-1), inverse
        ),
    ),
    "zuko": ({"bound": 3.0, "knot_map": SoftclipKnots()}, -1, _zuko),
    "normflows": ({"bound": 3.0}, -1, _summed(_normflows, tail_bound=3.0)),
    "normflows, circular": (
        {"bound": 3.0, "tails": "circular"}, 0,
        _summed(_normflows, tail_bound=3.0, tails="circular"),
    ),
    "normflows, bounds": ({"bound": _BOUNDS}, -1, _summed(_normflows, tail_bound=_BOUNDS)),
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_equals_the_peer(backend, name):
    """In float64 also for raw parameters of spread 6, where values still have digits to compare."""
    options, extra, peer = PEERS[name]
    bound = options.get("bound", 1.0)

    def ours(x, params, inverse):
        return rational_quadratic_spline(x, params, inverse=inverse, **options)

    for spread in (0.5, 2.0, 6.0):
        for inverse in (False, True):
            low, high = _range(bound, options.get("tails"), inverse)
            x = low + (high - low) * torch.rand(60, 5, dtype=torch.float64)
            params = spread * torch.randn(60, 5, 24 + extra, dtype=torch.float64)
            got = evaluate(ours, x, params, backend=backend, inverse=inverse)
            want = evaluate(peer, x, params, backend=backend, inverse=inverse)
            assert_same(got, want, f"{name}, spread {spread}, inverse={inverse}")


def _range(bound, tails, inverse):
    if tails == "none":
        return bound[2:] if inverse else bound[:2]
    return -1.3 * torch.as_tensor(bound), 1.3 * torch.as_tensor(bound)


@pytest.mark.parametrize("name", ["k10", "k64", "none", "softclip"])
def test_residual_of_the_inverse_in_float32(backend, name):
    """|f(f⁻¹(y)) − y| at spread 6, where nflows' own inverse asserts or returns wrong numbers.

    A rounding of x moves f(x) by f′(x) roundings, so that is what the residual is counted in.
    """
    case = replace(SPLINES[name], batch=(20000,), width=1, features=1, spread=6.0)
    y, params = case.tensors(torch.float32, inverse=True)
    with flowkern.backend(backend):
        x, logabsdet = case(y, params, inverse=True)
    with flowkern.backend("reference"):
        again, log_slope = case(x.double(), params.double())
    assert x.isfinite().all() and logabsdet.isfinite().all()
    rounding = torch.finfo(torch.float32).eps * y.abs().max() * (1 + log_slope.exp())
    worst = float(((again - y).abs().squeeze(-1) / rounding).max())
    assert worst <= tolerances.RESIDUAL, f"{worst:.3g} roundings"


def test_values_on_the_knots(backend):
    """Equal shares put the knots on the diagonal: y = x there, with the slope of its knot."""
    bins, bound, dtype = 8, 4.0, torch.float64
    x = torch.linspace(-bound, bound, bins + 1, dtype=dtype)[1:-1].unsqueeze(-1)
    raw = torch.randn(bins - 1, dtype=dtype)
    params = torch.cat((torch.zeros(2 * bins, dtype=dtype), raw)).expand(bins - 1, 1, -1)
    log_slope = torch.log(1e-3 + torch.nn.functional.softplus(raw))
    with flowkern.backend(backend):
        for inverse, sign in ((False, 1), (True, -1)):
            y, logabsdet = rational_quadratic_spline(x, params, bound=bound, inverse=inverse)
            torch.testing.assert_close(y, x)
            torch.testing.assert_close(logabsdet, sign * log_slope)


def test_gradients_at_the_ends_and_knots(backend):
    """On a knot the gradients are those of one of its two sides; at the ends those from within."""
    case = replace(SPLINES["k2"], width=1, features=1, batch=(1,))
    bound = case.options["bound"]
    params = torch.zeros(1, 1, 5, dtype=torch.float64)
    params[..., 4] = 1.0
    ones = (torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    for inverse in (False, True):
        for x, sides in ((0.0, (-1, 1)), (bound, (-1,)), (-bound, (1,))):
            at = [
                evaluate(
                    case, torch.full((1, 1), x + offset, dtype=torch.float64), params,
                    backend=backend, inverse=inverse, grads=ones,
                )
                for offset in (0.0, *(1e-9 * side for side in sides))
            ]  # fmt: skip
            errors = [max((g - w).abs().max() for g, w in zip(at[0][2:], side[2:])) for side in at[1:]]
            assert min(errors) < 1e-6


X, PARAMS = torch.zeros(4, 3), torch.zeros(4, 3, 23)
# (error, how its message begins, arguments)
BAD = [
    (TypeError, "x: ", dict(x=None)),
    (TypeError, "x: .*torch.int64", dict(x=X.long())),
    (ValueError, "x: ", dict(x=torch.tensor(1.0))),
    (TypeError, "params: .*torch.bool", dict(params=PARAMS.bool())),
    (ValueError, "params: .*device", dict(params=PARAMS.to("meta"))),
    (ValueError, "params: ", dict(params=torch.zeros(23))),
    (ValueError, "params: .*batch", dict(params=torch.zeros(5, 3, 23))),
    (ValueError, "params: .*3K-1 .*got 24", dict(params=torch.zeros(4, 3, 24))),
    (ValueError, "params: .*3K .*got 23", dict(tails="circular")),
    (ValueError, r"params: .*3K\+1 .*got 23", dict(tails="none")),
    (ValueError, r"params: .*3K\+1 .*got 1", dict(tails="none", params=torch.zeros(4, 3, 1))),
    (ValueError, "params: .*at most 256 bins, got 257", dict(params=torch.zeros(4, 3, 770))),
    (ValueError, "params: .*index or mask", dict(params=torch.zeros(4, 2, 23))),
    (ValueError, "index: .*names 2", dict(index=torch.tensor([0, 1]))),
    (ValueError, "mask: .*selects 2", dict(mask=torch.tensor([True, False, True]))),
    (ValueError, "tails: .*'linear'", dict(tails="linear")),
    (ValueError, "tails: ", dict(tails=["identity"])),
    (ValueError, "bound: ", dict(bound=0.0)),
    (ValueError, "bound: ", dict(bound=-1.0)),
    (ValueError, "bound: ", dict(bound=float("inf"))),
    (ValueError, "bound: ", dict(bound=float("nan"))),
    (ValueError, "bound: ", dict(bound="3")),
    (ValueError, "bound: ", dict(bound=None)),
    (ValueError, "bound: ", dict(bound=(1.0, 2.0))),
    (ValueError, "bound: ", dict(bound=(1.0, -1.0, 1.0, -1.0))),
    (ValueError, "bound: .*same interval", dict(bound=BOX)),
    (ValueError, r"bound: .*shape \(3,\)", dict(bound=torch.ones(4))),
    (ValueError, "bound: .*entries > 0", dict(bound=torch.tensor([1.0, 0.0, 2.0]))),
    (ValueError, "bound: .*entries > 0", dict(bound=torch.tensor([1.0, torch.nan, 2.0]))),
    (ValueError, "bound: .*device", dict(bound=torch.ones(3, device="meta"))),
    (ValueError, "bound: .*gradient", dict(bound=torch.ones(3, requires_grad=True))),
    (ValueError, "bound: .*gradient", dict(bound=torch.tensor(3.0, requires_grad=True))),
    (TypeError, "bound: .*complex64", dict(bound=torch.ones(3, dtype=torch.complex64))),
    (ValueError, "knot_map: min_width .*8 bins", dict(knot_map=SoftplusKnots(min_width=0.13))),
    (ValueError, "knot_map: min_height .*8 bins", dict(knot_map=SoftplusKnots(min_height=0.13))),
    (ValueError, "knot_map: expected one of softplus, softclip, got 'softmax'", dict(knot_map="softmax")),
    (TypeError, "knot_map: expected a knot map or its name, got int", dict(knot_map=1)),
]


@pytest.mark.parametrize("error, message, arguments", BAD)
def test_bad_input(error, message, arguments):
    with pytest.raises(error, match="^" + message):
        rational_quadratic_spline(**{"x": X, "params": PARAMS, **arguments})


@pytest.mark.parametrize(
    "knots, arguments",
    [
        (SoftplusKnots, dict(min_width=-1e-3)),
        (SoftplusKnots, dict(min_height=1.0)),
        (SoftplusKnots, dict(min_slope=float("nan"))),
        (SoftplusKnots, dict(min_width="0")),
        (SoftplusKnots, dict(scale=0.0)),
        (SoftplusKnots, dict(scale=float("inf"))),
        (SoftclipKnots, dict(slope_floor=0.0)),
        (SoftclipKnots, dict(slope_floor=1.0)),
        (SoftclipKnots, dict(slope_floor=None)),
        (SoftclipKnots, dict(scale="1")),
    ],
)
def test_bad_knot_map(knots, arguments):
    with pytest.raises(ValueError, match="^knot_map: "):
        knots(**arguments)


def test_bound_of_any_dtype_and_layout(backend):
    """A bound per feature may be integer, double or strided; one number may be a 0-d tensor."""
    case = SPLINES["k3"]
    x, params = case.tensors()

    def at(bound):
        return rational_quadratic_spline(x, params, bound=bound)[0]

    with flowkern.backend(backend):
        bounds = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        strided = torch.stack((bounds, -bounds), dim=-1)[:, 0]
        for same in (bounds.double(), bounds.long(), bounds.half(), strided):
            assert torch.equal(at(same), at(bounds))
        for same in (3, torch.tensor(3.0), torch.tensor(3), (-3, 3, -3, 3)):
            assert torch.equal(at(same), at(3.0))


@pytest.mark.parametrize("features", [32, 33])
@pytest.mark.parametrize("backend", [name for name in RUNNABLE if name != "reference"])
def test_a_call_beyond_the_caches_equals_its_halves(backend, features):
    """Gradients of 16 MiB and more pass the caches by on the way to memory; they are the same."""
    case = Case("large", "rational_quadratic_spline", (6001,), features, features, options={"bound": 3.0})
    x, params = case.tensors()
    assert params.nbytes >= 2**24
    grads = cotangents(x, x.sum(-1))
    whole = evaluate(case, x, params, backend=backend, grads=grads)
    for rows in (slice(0, 3000), slice(3000, None)):
        part = [t[rows] for t in (*grads, x, params)]
        half = evaluate(case, *part[2:], backend=backend, grads=part[:2])
        assert all(torch.equal(w[rows], h) for w, h in zip(whole, half))


def test_backward_saves_no_more_than_its_inputs(backend):
    """What waits for backward is x, params and the index themselves, not copies."""
    case = SPLINES["index"]
    x, params = (t.requires_grad_() for t in case.tensors())
    saved = []
    with flowkern.backend(backend):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            case(x, params)
    pointers = {t.data_ptr() for t in saved if t.is_floating_point()}
    assert pointers == {x.data_ptr(), params.data_ptr()}

"""Laws that hold for every coupling op, in float64, on every backend."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import jacobian

import flowkern
from tests.cases.coupling import AFFINES, BOX, SPLINES, TYPICAL, cotangents, evaluate

ALL = [*AFFINES.values(), *SPLINES.values()]
INTERVALS = [case for case in SPLINES.values() if case.options.get("tails") != "none"]
# Small enough for finite differences: each kind of map, tails and bound, on a part of the features.
SMALL = [
    replace(case, batch=(1,), width=3, features=2, select="index", bins=2)
    for case in (
        AFFINES["additive"],
        AFFINES["sigmoid"],
        AFFINES["scale_first"],
        SPLINES["k2"],
        SPLINES["circular"],
        SPLINES["box"],
        SPLINES["softclip"],
        replace(SPLINES["bounds"], options={"bound": torch.tensor([0.5, 2.0])}),
    )
]


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=[f"{c.op}-{c.name}" for c in cases])


@pytest.fixture(autouse=True)
def on_backend(backend):
    with flowkern.backend(backend):
        yield


@by_name(ALL)
def test_round_trip(case):
    """f⁻¹(f(x)) = x and f(f⁻¹(y)) = y, and the log-dets are antisymmetric."""
    for inverse in (False, True):
        x, params = case.tensors(torch.float64, inverse=inverse)
        y, there = case(x, params, inverse=inverse)
        x_again, back = case(y, params, inverse=not inverse)
        torch.testing.assert_close(x_again, x, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(back, -there, rtol=1e-10, atol=1e-10)


@by_name([replace(case, batch=(5,)) for case in ALL if case.batch == (63,)])
def test_logabsdet_is_that_of_the_jacobian(case, inverse):
    x, params = case.tensors(torch.float64, inverse=inverse)
    _, logabsdet = case(x, params, inverse=inverse)
    rows = jacobian(lambda x: case(x, params, inverse=inverse)[0].sum(0), x)
    torch.testing.assert_close(torch.linalg.slogdet(rows.transpose(0, 1))[1], logabsdet)


@by_name([SPLINES[name] for name in ("k1", "k8", "k64", "circular", "softclip", "none", "box")])
@pytest.mark.parametrize("spread", [0.5, 6.0])
def test_spline_rises(case, spread, inverse):
    """More x, more y, over the whole interval, and onto the whole interval."""
    low, high = BOX[2:] if inverse and case.name == "box" else _interval(case)
    case = replace(case, spread=spread, batch=(4001,), width=1, features=1)
    _, params = case.tensors(torch.float64)
    x = torch.linspace(low, high, 4001, dtype=torch.float64).unsqueeze(-1)
    y, _ = case(x, params[:1], inverse=inverse)
    low, high = BOX[2:] if not inverse and case.name == "box" else _interval(case)
    assert (y.diff(dim=0) > 0).all()
    assert low <= y[0] and y[-1] <= high
    torch.testing.assert_close(y[[0, -1], 0], y.new_tensor([low, high]), rtol=1e-15, atol=0)


def _interval(case):
    bound = case.options["bound"]
    return bound[:2] if isinstance(bound, tuple) else (-bound, bound)


@by_name(INTERVALS)
def test_identity_outside(case, inverse):
    """y = x with log-det 0 and gradient 1 outside, whatever the parameters."""
    case = replace(case, spread=6.0)
    x, params = case.tensors(torch.float64)
    x = torch.where(x < 0, x - 100, x + 100)
    result = evaluate(
        case, x, params, backend=flowkern.backends.resolve("cpu"), inverse=inverse,
        grads=(torch.ones_like(x), torch.ones(x.shape[:-1], dtype=torch.float64)),
    )  # fmt: skip
    assert torch.equal(result.y, x)
    assert not result.logabsdet.any()
    assert torch.equal(result.grad_x, torch.ones_like(x))
    assert not result.grad_params.any()


def test_slope_is_continuous_at_the_ends(inverse):
    """With identity tails the slope tends to 1 from within, so y and log-det are continuous."""
    for name in ("k1", "k8", "softclip"):
        case = replace(SPLINES[name], width=2, features=2, batch=(9,), spread=2.0)
        bound = case.options["bound"]
        _, params = case.tensors(torch.float64)
        ends = torch.tensor([-bound, bound], dtype=torch.float64).expand(9, 2)
        y, logabsdet = case(ends, params, inverse=inverse)
        torch.testing.assert_close(y, ends, rtol=1e-15, atol=0)
        torch.testing.assert_close(logabsdet, torch.zeros_like(logabsdet), atol=1e-12, rtol=0)
        _, logabsdet = case(ends * (1 - 1e-13), params, inverse=inverse)
        torch.testing.assert_close(logabsdet, torch.zeros_like(logabsdet), atol=1e-7, rtol=0)


def test_circular_slopes_agree_at_the_two_ends(inverse):
    case = replace(SPLINES["circular"], width=1, features=1, batch=(9,))
    bound = case.options["bound"]
    _, params = case.tensors(torch.float64)
    slopes = [case(torch.full((9, 1), end, dtype=torch.float64), params, inverse=inverse)[1] for end in (-bound, bound)]
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 0.1


@by_name(SMALL)
def test_derivatives(case, inverse):
    """First and second, also mapped, against finite differences."""
    x, params = (t.requires_grad_() for t in case.tensors(torch.float64, inverse=inverse))

    def op(x, params):
        return case(x, params, inverse=inverse)

    assert gradcheck(op, (x, params), check_batched_grad=True)
    assert gradgradcheck(op, (x, params), check_batched_grad=True)


@by_name([SMALL[1], SMALL[3]])
def test_forward_mode(case, inverse):
    """Directional derivatives, mapped, and those of the gradient, against finite differences."""
    x, params = (t.requires_grad_() for t in case.tensors(torch.float64, inverse=inverse))

    def op(x, params):
        return case(x, params, inverse=inverse)

    assert gradcheck(op, (x, params), check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(op, (x, params), check_fwd_over_rev=True, check_undefined_grad=False)


@pytest.mark.parametrize("op", TYPICAL)
def test_third_derivative(op):
    """Reverse mode three times equals forward mode three times."""
    case = replace(TYPICAL[op], batch=(), width=3, features=2)
    x, params = case.tensors(torch.float64)

    def f(s):
        return sum(t.sum() for t in case(s * x, params * s))

    three = [torch.ones((), dtype=torch.float64)]
    reverse = torch.func.grad(torch.func.grad(torch.func.grad(f)))(*three)
    forward = torch.func.jacfwd(torch.func.jacfwd(torch.func.jacfwd(f)))(*three)
    torch.testing.assert_close(reverse, forward)
    assert reverse != 0


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("op", TYPICAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_does_not_depend_on_threads(backend, op, dtype, restored_threads):
    case = replace(TYPICAL[op], batch=(5003,))
    x, params = case.tensors(dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(evaluate(case, x, params, backend=backend))
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other))


@pytest.mark.parametrize("op", TYPICAL)
def test_row_does_not_depend_on_its_batch(backend, op, inverse):
    """A row has the same bits alone, in any slice, and in any order."""
    case = replace(TYPICAL[op], batch=(150,))
    x, params = case.tensors(torch.float32, inverse=inverse)
    whole = evaluate(case, x, params, backend=backend, inverse=inverse)
    grads = cotangents(whole.y, whole.logabsdet)
    for rows in (slice(0, 1), slice(16, 17), slice(3, 90), slice(149, 150), torch.randperm(150)):
        part = evaluate(
            case, x[rows], params[rows], backend=backend, inverse=inverse,
            grads=tuple(g[rows] for g in grads),
        )  # fmt: skip
        for quantity, got, want in zip(part._fields, part, whole):
            assert torch.equal(got, want[rows]), quantity

"""Laws of the masked autoregressive transform, in float64, on every backend."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import jacobian

import flowkern
from flowkern.ops import Degrees, masked_autoregressive
from tests.cases.masked_autoregressive import CASES, cotangents, evaluate

# Small enough for finite differences.
SMALL = [
    replace(CASES[name], batch=2, hidden=(3,) * len(CASES[name].hidden), features=3)
    for name in ("sigmoid", "softplus", "coupling", "everything", "linear")
] + [replace(CASES["k4_softclip"], batch=2, features=2, hidden=(3,))]


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(autouse=True)
def on_backend(backend):
    with flowkern.backend(backend):
        yield


@by_name(CASES.values())
def test_round_trip(case):
    """f⁻¹(f(x)) = x and f(f⁻¹(y)) = y, and the log-dets are antisymmetric."""
    x, tensors = replace(case, spread=0.5).tensors(torch.float64)
    for inverse in (False, True):
        y, there = case(x, tensors, inverse=inverse)
        x_again, back = case(y, tensors, inverse=not inverse)
        torch.testing.assert_close(x_again, x, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(back, -there, rtol=1e-8, atol=1e-8)


@by_name([case for case in CASES.values() if case.features <= 9 and 1 < case.batch < 30])
def test_jacobian(case, inverse):
    """It is triangular once features are sorted by degree, and logabsdet is its log-determinant."""
    x, tensors = case.tensors(torch.float64)
    _, logabsdet = case(x, tensors, inverse=inverse)
    rows = jacobian(lambda x: case(x, tensors, inverse=inverse)[0].sum(0), x).transpose(0, 1)
    torch.testing.assert_close(torch.linalg.slogdet(rows)[1], logabsdet, rtol=1e-8, atol=1e-8)
    ranks = case.degrees().on("cpu")[2][: case.features]
    other = ~torch.eye(case.features, dtype=torch.bool)
    assert not rows[:, (ranks.unsqueeze(-1) <= ranks) & other].any()


@by_name(SMALL)
def test_derivatives(case, inverse):
    """First and second, in x and every tensor, against finite differences."""
    x, tensors = case.tensors(torch.float64)
    given = [t for t in tensors if t is not None]

    def op(x, *given):
        given = iter(given)
        every = [t if t is None else next(given) for t in tensors]
        return case(x, every, inverse=inverse)

    inputs = tuple(t.requires_grad_() for t in (x, *given))
    assert gradcheck(op, inputs, check_forward_ad=case is SMALL[1])
    if case.name in ("softplus", "everything"):
        assert gradgradcheck(op, inputs)


@by_name([CASES["random"], CASES["residual"]])
def test_order_of_units_is_irrelevant(case, inverse):
    """Permuting features and hidden units, with their degrees, permutes the result."""
    x, tensors = case.tensors(torch.float64)
    want, logabsdet = case(x, tensors, inverse=inverse)
    moved, move = [], torch.randperm(case.features)
    ranks = _ranks(case)
    new_ranks, before = [ranks[0][move]], move
    after = torch.randperm(case.hidden[0])  # residual blocks add unit to unit
    for k, units in enumerate(case.hidden):
        after = after if case.residual else torch.randperm(units)
        weight, bias, *rest = tensors[5 * k : 5 * k + 5]
        moved += [weight[after][:, before], bias[after], *rest]
        new_ranks.append(ranks[k + 1][after])
        before = after
    weight, bias, *rest = tensors[-5:]
    outputs = (move.unsqueeze(-1) * case.per_feature + torch.arange(case.per_feature)).flatten()
    moved += [weight[outputs][:, before], bias[outputs], *rest]
    degrees = Degrees(new_ranks[0], new_ranks[1:])
    got = masked_autoregressive(x[:, move], case.layers(moved), degrees, case.element, inverse=inverse)
    torch.testing.assert_close(got, (want[:, move], logabsdet))


def _ranks(case):
    return case.degrees().on("cpu")[2].split([case.features, *case.hidden])


def test_entries_that_are_not_read(inverse):
    """Weights from units of higher degree change nothing, whatever they hold, and have gradient 0."""
    case = CASES["random"]
    x, tensors = case.tensors(torch.float64)
    masks = _masks(case, tensors)
    other = [t if t is None or i % 5 else t.where(masks[i // 5], 7.0) for i, t in enumerate(tensors)]
    got = evaluate(case, x, other, backend=flowkern.backends.resolve("cpu"), inverse=inverse)
    want = evaluate(case, x, tensors, backend=flowkern.backends.resolve("cpu"), inverse=inverse)
    assert torch.equal(got.y, want.y) and torch.equal(got.logabsdet, want.logabsdet)
    for grad, mask in zip(got.grads[::5], masks):
        assert not grad[~mask].any()


def _masks(case, tensors):
    ranks = _ranks(case)
    to = [*ranks[1:], (ranks[0] - 1).repeat_interleave(case.per_feature)]
    return [a.unsqueeze(-1) >= b for a, b in zip(to, ranks)]


def test_nan_stays_in_its_row(inverse):
    """NaN in one feature spoils it, features that depend on it, and the log-det of that row alone."""
    for name in ("softplus", "k8", "residual"):
        case = CASES[name]
        x, tensors = case.tensors(torch.float64)
        clean = evaluate(case, x, tensors, backend=flowkern.backends.resolve("cpu"), inverse=inverse)
        x[3, 2] = torch.nan
        y, logabsdet = case(x, tensors, inverse=inverse)
        others = torch.arange(len(x)) != 3
        assert torch.equal(y[others], clean.y[others])
        assert torch.equal(logabsdet[others], clean.logabsdet[others])
        assert y[3, 2].isnan() and logabsdet[3].isnan()
        if inverse:
            assert torch.equal(y[3, :2], clean.y[3, :2])


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_result_does_not_depend_on_threads(backend, inverse, restored_threads):
    case = replace(CASES["residual"], batch=1003)
    x, tensors = case.tensors()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(evaluate(case, x, tensors, backend=backend, inverse=inverse))
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0][:3], other[:3]))


def test_row_does_not_depend_on_its_batch(backend, inverse):
    """A row has the same bits alone, in any slice, and in any order."""
    if backend == "reference":
        pytest.skip("the rounding of torch's matrix products depends on their size")
    case = replace(CASES["everything"], batch=150)
    x, tensors = case.tensors()
    whole = evaluate(case, x, tensors, backend=backend, inverse=inverse)
    grads = cotangents(whole.y, whole.logabsdet)
    for rows in (slice(0, 1), slice(16, 17), slice(3, 90), slice(149, 150), torch.randperm(150)):
        part = evaluate(
            case, x[rows], [t if t is None or len(t) != 150 else t[rows] for t in tensors],
            backend=backend, inverse=inverse, grads=tuple(g[rows] for g in grads),
        )  # fmt: skip
        for quantity, got, want in zip(part._fields[:3], part[:3], whole[:3]):
            assert torch.equal(got, want[rows]), quantity

"""The masked transform's CUDA kernels, emulated: weights, tapes and orders."""

import pytest
import torch

from flowkern.ops._masked_autoregressive.conditioner import masks
from tests.cases.masked_autoregressive import Case, evaluate, flat, raw_arguments
from tests.cases.masked_autoregressive.emulated import CASES, OPS, with_rows

# The first test that runs builds the library.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("emulated")]


def _evaluate(name, dtype, inverse, batch, change=lambda x, tensors: None):
    """All quantities of a case with so many rows at the most, whose tensors have been changed."""
    case = with_rows(name, batch)
    x, tensors = case.tensors(dtype)
    change(x, tensors)
    return [value for _, value in flat(evaluate(case, x, tensors, backend="cpu", inverse=inverse))]


def test_weights_are_not_read_and_nan_stays_in_its_row():
    case = CASES["everything"]
    ranks = case.degrees().on("cpu")[2]

    def spoil_weights(x, tensors):
        for weight, read in zip(tensors[::5], masks(case.features, ranks, tensors[::5])):
            weight.masked_fill_(~read, torch.nan)

    def spoil_row(x, tensors):
        x[2, 1] = torch.nan

    others = torch.arange(5) != 2
    for inverse in (False, True):
        arguments = ("everything", torch.float64, inverse, 5)
        want = _evaluate(*arguments)
        assert all(map(torch.equal, want, _evaluate(*arguments, spoil_weights)))
        y, logabsdet, grad_x, *_ = _evaluate(*arguments, spoil_row)
        assert y[2].isnan().any() and logabsdet[2].isnan()
        assert all(torch.equal(a[others], b[others]) for a, b in zip((y, logabsdet, grad_x), want))


def test_without_a_tape():
    """The gradient of x alone is the same, and the tape has no rows."""
    for inverse in (False, True):
        x, *rest = raw_arguments(CASES["everything"], inverse=inverse)
        y, logabsdet = OPS["masked_autoregressive"](x, *rest)
        backward = OPS["masked_autoregressive_backward"]
        grads, tapes = zip(*(backward(x, logabsdet, x, y, tape, *rest) for tape in (False, True)))
        assert torch.equal(*grads) and len(tapes[0]) == 0 and len(tapes[1]) > 0


def test_order_out_of_range():
    """Nobody reads or writes beyond a tensor, where a unit of another number would be."""
    case = Case("one unit", 1, (1,), batch=3)
    for inverse in (False, True):
        x, tensors, order, ends, *rest = raw_arguments(case, inverse=inverse)
        want = OPS["masked_autoregressive"](x, tensors, order, ends, *rest)
        for step in (9, -9):
            got = OPS["masked_autoregressive"](x, tensors, order + step, ends, *rest)
            assert all(map(torch.equal, got, want))
            OPS["masked_autoregressive"](x, tensors, order, ends + step, *rest)

"""Runge-Kutta stages and errors of steps: every backend against the float64 reference."""

import os
from unittest import mock

import pytest
import torch

import flowkern
from flowkern.backends import unavailable
from flowkern.ops import runge_kutta_error, runge_kutta_stage
from flowkern.ops._runge_kutta_stage import reference
from tests.cases.runge_kutta_stage import CASES, check
from tests.conftest import INTERPRETED, RUNNABLE

with mock.patch.dict(os.environ, INTERPRETED):
    from triton.runtime.interpreter import InterpretedFunction

    from flowkern.ops._runge_kutta_stage import triton as kernels
    from tests.ops import triton_memory


@pytest.fixture(params=[*RUNNABLE, "triton"])
def on_backend(request):
    """Triton's kernels run through its interpreter."""
    environment = INTERPRETED if request.param == "triton" else {}
    with mock.patch.dict(os.environ, environment), flowkern.backend(request.param), triton_memory.checked():
        yield request.param


def tensors(shape, stages, dtype, by_row=False):
    y, *k = torch.randn(stages + 1, *shape, dtype=dtype)
    weights = torch.randn(*(shape[:1] if by_row else ()), stages, dtype=dtype)
    return y, k, weights


def test_triton_is_interpreted():
    assert isinstance(kernels._stage_kernel, InterpretedFunction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_reference(on_backend, dtype):
    for case in CASES.values():
        check(case, on_backend, dtype)


def test_error_of_a_state_that_is_not_finite(on_backend):
    y0, y1 = torch.ones(3, 2), torch.tensor([[1.0, 2.0], [torch.inf, 1.0], [1.0, torch.nan]])
    got = runge_kutta_error(y0, y1, [y0, y0], torch.ones(2), 1e-3, 1e-3)
    assert got.isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize("by_row", [False, True])
def test_gradients(on_backend, by_row):
    y, k, weights = tensors((3, 2), 3, torch.float64, by_row)
    inputs = [tensor.requires_grad_() for tensor in (y, weights, *k)]
    function = lambda y, weights, *k: runge_kutta_stage(y, k, weights)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("by_row", [False, True])
def test_more_stages_than_a_kernel_takes(on_backend, by_row):
    y, k, weights = tensors((3, 2), 11, torch.float64, by_row)
    inputs = [tensor.requires_grad_() for tensor in (y, weights, *k)]
    function = lambda y, weights, *k: runge_kutta_stage(y, k, weights)  # noqa: E731
    torch.testing.assert_close(function(*inputs), reference.forward(*inputs))
    assert torch.autograd.gradcheck(function, inputs)
    got = runge_kutta_error(y, k[0], k, weights, 1e-2, 1e-3)
    torch.testing.assert_close(got, reference.error(y, k[0], weights, 1e-2, 1e-3, *k))


def test_layouts_and_other_dtypes(on_backend):
    y, k, weights = tensors((6, 4), 3, torch.float64)
    turned = [tensor.mT.contiguous().mT for tensor in (y, *k)]
    assert torch.equal(runge_kutta_stage(turned[0], turned[1:], weights), runge_kutta_stage(y, k, weights))
    half = [tensor.bfloat16() for tensor in (y, *k)]
    assert runge_kutta_stage(half[0], half[1:], weights.bfloat16()).dtype == torch.bfloat16


def test_opcheck():
    """Schemas are honest and the fake kernels agree with the real ones."""
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    y, k, weights = tensors((5, 3), 4, torch.float32, by_row=True)
    torch.library.opcheck(torch.ops.flowkern.runge_kutta_stage, (y, k, weights))
    torch.library.opcheck(torch.ops.flowkern.runge_kutta_error, (y, k[0], k, weights, 1e-3, 1e-3))


def test_raw_ops_refuse_what_they_cannot_read():
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    y, k, weights = tensors((5, 3), 2, torch.float32)
    for message, bad in (
        ("k: expected 1 to 8 tensors, got 0", (y, [], weights)),
        ("k: expected the shape of y", (y, [k[0][:4], k[1]], weights)),
        ("k: expected the dtype of y", (y, [k[0].double(), k[1]], weights)),
        ("k: expected a contiguous tensor", (y, [k[0].mT.contiguous().mT, k[1]], weights)),
        ("k: expected 1 to 8 tensors, got 10", (y, k * 5, torch.ones(10))),
        ("weights: expected the dtype of y", (y, k, weights.double())),
        ("weights: expected one for each of 2", (y, k, weights[:1])),
        ("weights: expected one for each of 2", (y, k, weights.expand(4, 2))),
        ("y: expected float32 or float64", (y.half(), [k_j.half() for k_j in k], weights.half())),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.flowkern.runge_kutta_stage(*bad)


def test_triton_refuses_what_it_cannot_read():
    y, k, weights = tensors((5, 3), 2, torch.float32)
    for bad, message in (
        ((y, [], weights), "k: expected 1 to 8 tensors, got 0"),
        ((y, [k[0][:4], k[1]], weights), "k: expected contiguous"),
        ((y, [k[0].mT.contiguous().mT, k[1]], weights), "k: expected contiguous"),
        ((y, k, weights.double()), "weights: expected torch.float32"),
        ((y, k, weights.expand(4, 2)), "weights: expected torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.flowkern_triton.runge_kutta_stage(*bad)

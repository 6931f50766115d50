"""Batched gradients through every op: all rows of a Jacobian at once, as one by one."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from tests import cases

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()


CALLS = {name: call for module in cases.modules("calls").values() for name, call in module.BATCHED.items()}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_jacobian_of_batched_gradients(on_backend, call):
    call = call()
    want, x = jacobian(call, X), X.clone().requires_grad_()
    torch.testing.assert_close(jacobian(call, X, vectorize=True), want)
    y = call(x)
    rows = torch.eye(y.numel()).double().view(-1, *y.shape)
    got = torch.func.vmap(lambda row: torch.autograd.grad(y, x, row, retain_graph=True)[0])(rows)
    torch.testing.assert_close(got, want.reshape(got.shape))


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if "adjoint" not in name])
def test_second_derivatives_of_batched_gradients(on_backend, call):
    call = call()
    total = lambda x: call(x).square().sum()  # noqa: E731
    torch.testing.assert_close(hessian(total, X, vectorize=True), hessian(total, X))

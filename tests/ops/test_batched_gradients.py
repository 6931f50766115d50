"""Batched gradients through every op: all rows of a Jacobian at once, as one by one."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from flowkern import flows
from flowkern.ops import affine_coupling, probability_path, rational_quadratic_spline, runge_kutta_stage

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()


def flow(kind, **options):
    made = kind(3, hidden_features=(8, 8), **options).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2
    return lambda x: made().log_prob(x)


CALLS = {
    "affine_coupling": lambda: lambda x: affine_coupling(x, torch.stack((x, x.sin()), -1))[0],
    "rational_quadratic_spline": lambda: (
        lambda x: rational_quadratic_spline(x, x.unsqueeze(-1) * torch.ones(8).double())[0]
    ),
    "masked_autoregressive": lambda: flow(flows.MAF),
    "neural_ode": lambda: flow(flows.CNF, steps=2),
    "neural_ode adjoint": lambda: flow(flows.CNF, steps=2, gradient="adjoint"),
    "probability_path": lambda: (
        lambda x: probability_path(x, x.sin(), path="schroedinger_bridge", sigma=0.3, seed=3)[1]
    ),
    "runge_kutta_stage": lambda: lambda x: runge_kutta_stage(x, [x.sin(), x.exp()], torch.ones(2).double()),
}


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

"""The continuous adjoint: torchdiffeq's gradients, those of backpropagation, memory."""

import pytest
import torch
import torchdiffeq

import flowkern
from tests.ode.fields import Field, close

T = torch.tensor([0.0, 0.3, 0.55, 1.0], dtype=torch.float64)


def gradients(solve, field, y0, t, **call):
    y0, t = y0.clone().requires_grad_(), t.clone().requires_grad_()
    states = solve(field, y0, t, **call)
    weights = torch.linspace(1, 2, states.numel(), dtype=states.dtype).view(states.shape)
    return torch.autograd.grad((weights * states.square()).sum(), (y0, t, *field.parameters()))


@pytest.mark.parametrize(
    "call",
    [
        {"method": "euler"},
        {"method": "rk4", "options": {"step_size": 0.07}},
        {"method": "dopri5", "rtol": 1e-5},
        {"method": "dopri5", "rtol": 1e-5, "adjoint_options": {"norm": "seminorm"}},
        {"method": "dopri5", "rtol": 1e-5, "adjoint_options": {"norm": lambda s: s[2].abs().max()}},
        {"method": "dopri5", "adjoint_method": "rk4", "adjoint_rtol": 1e-3},
    ],
    ids=["euler", "rk4", "dopri5", "seminorm", "norm", "mixed"],
)
def test_gradients_of_torchdiffeq(call):
    field, y0 = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64)
    for t in (T, -T):
        want = gradients(torchdiffeq.odeint_adjoint, field, y0, t, **call)
        for a, b in zip(gradients(flowkern.odeint_adjoint, field, y0, t, **call), want, strict=True):
            close(a, b, rtol=1e-12)


def test_tuples():
    """Only one part has a gradient; parameters that are not used get zeros, frozen ones none."""
    field = Field(torch.float64)
    field.unused, field.inner.bias.requires_grad = torch.nn.Parameter(torch.ones(2).double()), False
    results, t = [], T.clone().requires_grad_()  # else torchdiffeq controls a gradient that is dropped
    for library in (torchdiffeq, flowkern):
        y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
        params = tuple(p for p in field.parameters() if p.requires_grad)
        solve, state = library.odeint_adjoint, (y0, torch.zeros(4, dtype=torch.float64))
        _, total = solve(field.pair, state, t, adjoint_params=field.parameters(), rtol=1e-5)
        results.append(torch.autograd.grad(total[-1].sum(), (y0, *params)))
    for a, b in zip(*results, strict=True):
        close(a, b, rtol=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "rk4_classic"])
def test_gradients_of_backpropagation(method):
    """The two gradients agree as closely as either is that of the solution."""
    field, y0 = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64)
    fixed = method == "rk4_classic"
    t = torch.linspace(0, 1, 51, dtype=torch.float64) if fixed else T
    call = dict(method=method, rtol=1e-8, atol=1e-8, options=None if fixed else {"max_step": 0.05})
    adjoint = gradients(flowkern.odeint_adjoint, field, y0, t, **call)
    for a, b in zip(adjoint, gradients(flowkern.odeint, field, y0, t, **call), strict=True):
        close(a, b, rtol=2e-5)


def test_per_sample_forward():
    """Steps of each sample forwards, of the whole batch backwards; func sees times (N, 1) in both."""
    field, y0, seen = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64), set()
    field.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape))
    call = dict(rtol=1e-8, atol=1e-8)
    got = gradients(flowkern.odeint_adjoint, field, y0, T, options={"per_sample": True}, **call)
    assert seen == {(4, 1)}
    for a, b in zip(got, gradients(flowkern.odeint_adjoint, field, y0, T, **call), strict=True):
        close(a, b, rtol=1e-5)


@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_times_of_each_sample(method):
    """Gradients to them too, as by backpropagation; one sample stands still."""
    field, y0 = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, 1.0, -0.2]).double() + T.unsqueeze(1) * torch.tensor([1.0, -0.5, 0.0, 2.0])
    size = {"step_size": 0.02} if method == "rk4" else {}
    call = dict(method=method, rtol=1e-9, atol=1e-9, options={"per_sample": True, **size})
    got, want = (gradients(f, field, y0, t, **call) for f in (flowkern.odeint_adjoint, flowkern.odeint))
    assert got[1].shape == t.shape and got[1].abs().min() > 1e-3
    for a, b in zip(got, want, strict=True):
        close(a, b, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"per_sample": True}])
def test_a_batch_of_none(options):
    field, y0 = Field(torch.float64), torch.zeros(0, 3, dtype=torch.float64)
    for t in (T, T.unsqueeze(1).expand(-1, 0)) if options else (T,):
        grads = gradients(flowkern.odeint_adjoint, field, y0, t, options=options)
        assert not any(grad.any() for grad in grads)


def test_memory_does_not_grow_with_the_steps():
    """Nothing that the field computes on the way is kept."""
    field, y0, kept = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    for steps in (4, 64):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            options = {"step_size": 1 / steps}
            flowkern.odeint_adjoint(field, y0, T, method="rk4", options=options)
        assert sum(kept) == 4 * y0.numel() + len(T) + sum(p.numel() for p in field.parameters())


@pytest.mark.parametrize(
    "call, error, message",
    [
        ({}, ValueError, "adjoint_params: needed, as func is not an nn.Module"),
        (
            {"adjoint_params": (), "adjoint_method": "rk4", "options": {"first_step": 0.1}},
            ValueError, "adjoint_options: needed",
        ),
        (
            {
                "adjoint_params": (), "t": torch.zeros(2, 3), "options": {"per_sample": True},
                "adjoint_options": {"step_t": [0.5], "jump_t": [0.1]},
            },
            ValueError, "adjoint_options: jump_t, step_t: not with times of each sample",
        ),
        ({"adjoint_params": (), "event_fn": max}, NotImplementedError, "event_fn"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        flowkern.odeint_adjoint(lambda t, y: -y, torch.ones(3), **{"t": [0.0, 1.0], **call})

"""torchdiffeq with flowkern's methods by name: its own numbers, gradients and errors."""

import warnings

import pytest
import torch
import torchdiffeq

import flowkern
from flowkern.adapters import torchdiffeq as fused
from tests.ode.fields import Field, close

T = torch.tensor([0.0, 0.3, 0.55, 1.0], dtype=torch.float64)
pytestmark = pytest.mark.filterwarnings("error:func")  # callbacks that no one has set are not missed


@pytest.fixture(autouse=True)
def registered():
    fused.register()
    yield
    fused.unregister()


@pytest.mark.parametrize("solve", [torchdiffeq.odeint, torchdiffeq.odeint_adjoint])
@pytest.mark.parametrize(
    "method, options",
    [
        *((method, {"step_size": 0.2}) for method in ("euler", "midpoint", "heun2", "heun3", "rk4")),
        ("rk4", None), ("dopri5", None), ("dopri5", {"first_step": 0.1}),
    ],
)  # fmt: skip
def test_numbers_and_gradients_of_torchdiffeq(solve, method, options):
    """For tuples in both directions."""
    field = Field(torch.float64)
    for t in (T, -T):
        results = []
        for name in (method, f"flowkern_{method}"):
            y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
            state = y0, torch.zeros(4, dtype=torch.float64)
            parameters = {"adjoint_params": field.parameters()} if "adjoint" in solve.__name__ else {}
            y, total = solve(field.pair, state, t, method=name, options=options, rtol=1e-6, **parameters)
            loss = y.square().sum() + total.sum()
            results.append((y, total, *torch.autograd.grad(loss, (y0, *field.parameters()))))
        # torchdiffeq's steps have derivatives by their sizes; those of a solution have none.
        rtol = 1e-5 if method == "dopri5" and solve is torchdiffeq.odeint else 1e-11
        for got, want in zip(*reversed(results), strict=True):
            close(got, want, rtol=rtol)


@pytest.mark.parametrize("method", flowkern.ode.TABLEAUX)
def test_every_method(method):
    y0, options = torch.rand(3, dtype=torch.float64), {}
    call = dict(method=method, rtol=1e-6, atol=1e-6)
    got = torchdiffeq.odeint(lambda t, y: -y, y0, T, **call | {"method": f"flowkern_{method}"})
    close(got, flowkern.odeint(lambda t, y: -y, y0, T, options=options, **call))


def test_registration_is_undone():
    fused.unregister()
    with pytest.raises(ValueError, match='Invalid method "flowkern_rk4"'):
        torchdiffeq.odeint(lambda t, y: -y, torch.ones(3), T, method="flowkern_rk4")


def test_events_are_refused():
    event = lambda t, y: y[0]  # noqa: E731
    message = "method: 'flowkern_rk4' has no events; take one of torchdiffeq's own for them, such as 'dopri5'"
    for call in (
        lambda **options: torchdiffeq.odeint(lambda t, y: -y, torch.ones(3), T[:2], **options),
        lambda **options: torchdiffeq.odeint_event(lambda t, y: -y, torch.ones(3), T[0], **options),
    ):
        with pytest.raises(NotImplementedError, match=message):
            call(method="flowkern_rk4", event_fn=event)


def test_options_are_not_ignored_in_silence():
    """torchdiffeq's dtype of times, where it is another one than here; not the norm that it passes to grids."""
    y0 = torch.rand(3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    call = dict(func=lambda t, y: (-y[0], y[1]), y0=y0, t=T)
    with pytest.warns(UserWarning, match="options: dtype: times are kept in torch.float64"):
        torchdiffeq.odeint(**call, method="flowkern_dopri5", options={"dtype": torch.float32})
    with pytest.warns(UserWarning, match="options: rk4 has none called norm"):
        flowkern.odeint(**call, method="rk4", options={"norm": max})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchdiffeq.odeint(**call, method="flowkern_dopri5", options={"dtype": torch.float64})
        torchdiffeq.odeint(**call, method="flowkern_rk4")

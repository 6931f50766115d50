"""Adaptive steps of each sample: accuracy, times, independence of the rest of the batch, failures."""

import itertools
import math

import numpy
import pytest
import torch

import flowkern
from flowkern.ode import Status, per_sample
from flowkern.ops import runge_kutta_stage
from tests.ode.fields import Field, close, decay

METHODS = ("bosh3", "dopri5", "tsit5", "dopri8")
RATES = torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0], dtype=torch.float64).unsqueeze(1)
T = torch.tensor([0.0, 0.0, 0.3, 0.55, 1.0], dtype=torch.float64)
OWN = torch.tensor([[0.0, 0.5, 1.0, 0.0, -1.0]]).double() + T.unsqueeze(1) * torch.tensor([1.0, -1.0, 0.0, 2.0, 0.5])


def solve(field, y0, t, *, method="dopri5", rtol=1e-7, **options):
    options = {"per_sample": True, **options}
    return flowkern.odeint(field, y0, t, method=method, rtol=rtol, atol=rtol, options=options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("t", [T, -T / 4, OWN], ids=["shared", "reverse", "own"])
def test_accuracy(method, t):
    """At times shared or of each sample's own, rising, falling or standing still."""
    field, solution = decay(RATES)
    y0 = torch.rand(5, 2, dtype=torch.float64)
    times = t.reshape(len(t), -1, 1)
    got, want = solve(field, y0, t, method=method), solution(y0, times[0], times)
    assert ((got - want).abs() / (1 + want.abs())).max() < 4e-6


def test_rows_do_not_know_each_other():
    """A row takes the steps that it takes alone, with any others beside it."""
    field, _ = decay(RATES)
    y0 = torch.rand(5, 2, dtype=torch.float64)
    together = solve(field, y0, T)
    for row in range(5):
        alone = solve(decay(RATES[row : row + 1])[0], y0[row : row + 1], T)
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=1e-12, atol=1e-14)


def test_an_output_is_made_once(monkeypatch):
    """Of each row where that passes it, however far the rows are from each other."""
    made = []

    def counted(y, k, weights):
        made.append(len(y))
        return runge_kutta_stage(y, k, weights)

    monkeypatch.setattr(per_sample, "runge_kutta_stage", counted)
    field, solution = decay(RATES)
    y0, t = torch.rand(5, 2, dtype=torch.float64), torch.linspace(0, 1, 101, dtype=torch.float64)
    states = solve(field, y0, t)
    assert sum(made) == 100 * 5
    torch.testing.assert_close(states, solution(y0, t[0], t.view(-1, 1, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method, rtol", [("adaptive_heun", 1e-4), ("fehlberg2", 1e-4), ("dopri5", 1e-7)])
def test_one_row_takes_the_steps_of_the_batch(method, rtol):
    field, y0 = Field(torch.float64), torch.randn(1, 3, dtype=torch.float64)
    want = flowkern.odeint(field, y0, T, method=method, rtol=rtol, atol=rtol)
    close(solve(field, y0, T, method=method, rtol=rtol), want)


@pytest.mark.parametrize("first_step", [None, 1.0])
def test_gradients(first_step):
    """Through steps that are accepted and others that are not; also of times without a step."""
    field, solution = decay(RATES[:4])
    y0 = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    t = OWN[:, :4].clone().requires_grad_()
    weights = torch.rand(5, 4, 2, dtype=torch.float64)
    got = solve(field, y0, t, rtol=1e-9, first_step=first_step)
    want = solution(y0, t[0].unsqueeze(1), t.unsqueeze(2))
    grads = (torch.autograd.grad((states * weights).sum(), (y0, t)) for states in (got, want))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_derivative_through_what_is_dropped():
    """A step that is too long overflows; it is not made, and leaves no NaN in the gradient."""
    y0 = torch.tensor([[1.0], [5.0]], dtype=torch.float64, requires_grad=True)
    states = solve(lambda t, y: torch.expm1(y), y0, [0.0, 0.005], first_step=0.1, rtol=1e-5)
    (grad,) = torch.autograd.grad(states[-1].sum(), y0)
    assert states.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"step_size": 0.13}, {"step_size": 0.13, "perturb": True}])
@pytest.mark.parametrize("method", ["euler", "rk4", "heun3"])
def test_grids_of_rows(method, options):
    """Between two outputs equal steps, in all rows as many; a row by itself has the numbers of that grid."""
    field, y0 = Field(torch.float64), torch.randn(5, 3, dtype=torch.float64)
    got = solve(field, y0, OWN, method=method, **options)
    counts = (1, 5, 4, 7) if "step_size" in options else (1, 1, 1, 1)  # one row is twice as fast as T
    for row in range(5):
        ends = [0, *itertools.accumulate(counts)]
        grid = torch.from_numpy(numpy.interp(range(ends[-1] + 1), ends, OWN[:, row]))
        call = dict(method=method, options={"perturb": options.get("perturb", False)})
        want = flowkern.odeint(field, y0[row], grid, **call)[ends]
        close(got[:, row], want)


@pytest.mark.parametrize("step_size", [None, 0.35])
def test_gradients_of_grids_of_rows(step_size):
    field, y0 = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    t, options = OWN[1:, [0, 1, 3, 4]].clone().requires_grad_(), {"step_size": step_size}
    function = lambda y0, t: solve(field, y0, t, method="midpoint", **options)  # noqa: E731
    assert torch.autograd.gradcheck(function, (y0, t))


def test_grids_of_rows_are_one_graph():
    field, y0, t = Field(torch.float32), torch.randn(5, 3), OWN.float()
    function = lambda y0, t: solve(field, y0, t, method="rk4")  # noqa: E731
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(y0, t), function(y0, t), rtol=1e-5, atol=1e-6)


def test_times_that_func_sees():
    """(N, 1, …), of the state's dtype, broadcasting with the state."""
    seen = []

    def field(t, y):
        seen.append((t.shape, t.dtype))
        return t * y

    for method in ("dopri5", "rk4"):
        solve(field, torch.rand(3, 2, 4), T.float(), method=method, rtol=1e-3)
    assert set(seen) == {((3, 1, 1), torch.float32)}


@pytest.mark.parametrize("method", METHODS)
def test_tuples(method):
    """Parts may have any shapes with the same number of samples."""
    y0 = torch.rand(3, 2, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    options = {"per_sample": True}
    y, total = flowkern.odeint(
        lambda t, s: (-s[0], s[0].sum((1, 2))), y0, T, method=method, rtol=(1e-7, 1e-6), options=options
    )
    close(total + y.sum((2, 3)), y0[0].sum((1, 2)).expand(5, 3), rtol=1e-6)
    torch.testing.assert_close(y[-1], y0[0] * math.exp(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method, options", [("dopri5", {}), ("rk4", {"step_size": 0.1})])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (0, 3), (3, 0)])
def test_shapes_and_times(shape, method, options):
    y0 = torch.rand(shape, dtype=torch.float64)
    options = {"method": method, **options}
    torch.testing.assert_close(solve(lambda t, y: -y, y0, [0.5], **options), y0.unsqueeze(0))
    got, later = solve(lambda t, y: -y, y0, [1.0, 1.0, 0.5, 0.5], **options), y0 * math.exp(0.5)
    torch.testing.assert_close(got, torch.stack((y0, y0, later, later)), rtol=1e-5, atol=0)


def test_the_shortest_step_is_taken():
    """Whatever its error, and in its row alone."""
    field, solution = decay(RATES)
    y0 = torch.rand(5, 2, dtype=torch.float64)
    states = solve(field, y0, T, rtol=1e-9, min_step=0.05)
    errors = (states - solution(y0, T[0], T.view(-1, 1, 1))).abs().amax((0, 2))
    assert errors[0] < 1e-8 < 1e-6 < errors[-1] < 1e-2


def test_callbacks_are_not_called():
    """And a warning says so, as torchdiffeq's does of its solvers."""
    field = Field(torch.float64)
    field.callback_accept_step = lambda *_: field.seen.append(1)
    for options, method in (({"per_sample": True}, "dopri5"), ({}, "rk4")):
        with pytest.warns(UserWarning, match="func: callback_accept_step is not called"):
            flowkern.odeint(field, torch.rand(2, 3).double(), T, method=method, options=options)
    assert not field.seen


def test_states_in_any_layout():
    y0 = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    options = {"per_sample": True}
    want = flowkern.odeint(lambda t, y: t - y, y0, [0.0, 1.0], options=options)
    permuted = y0.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    for layout in (y0.to(memory_format=torch.channels_last), permuted):
        torch.testing.assert_close(flowkern.odeint(lambda t, y: t - y, layout, [0.0, 1.0], options=options), want)


def test_status_of_each_sample():
    """Those that fail have their reasons; the others are solved all the same."""
    y0 = torch.tensor([[0.5], [2.0], [math.nan], [0.25]], dtype=torch.float64)
    options = {"per_sample": True, "on_failure": "warn"}
    with pytest.warns(flowkern.ode.SolverWarning, match="1 of 4 samples: .*; 1 of 4 samples") as warned:
        states = flowkern.odeint(lambda t, y: y * y, y0, [0.0, 0.2, 1.0], rtol=1e-4, options=options)
    want = [Status.OK, Status.STEP_UNDERFLOW, Status.NON_FINITE, Status.OK]
    assert warned[0].message.status.tolist() == want
    assert warned[0].filename == __file__
    exact = 1 / (1 / y0 - torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1))
    exact[2, 1] = math.nan
    torch.testing.assert_close(states, exact, rtol=1e-3, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "t, options, message",
    [
        (T, {"norm": torch.norm}, "options: norm: not with per_sample"),
        (OWN[:, :3], {}, r"t: expected shape \(T,\) or \(T, 5\), got \(5, 3\)"),
        (OWN[[2, 0, 3]], {}, "t: expected times that rise or fall"),
        (OWN.index_fill(0, torch.tensor(2), math.nan), {}, "t: expected times that rise or fall"),
        (OWN[:1] + math.inf, {}, "t: expected times that rise or fall"),
    ],
)
def test_errors_name_the_argument(t, options, message):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: -y, torch.rand(5, 2, dtype=torch.float64), t, **options)


@pytest.mark.parametrize(
    "y0",
    [torch.tensor(1.0), (torch.ones(3), torch.tensor(1.0)), (torch.ones(3), torch.ones(2))],
)
def test_states_without_rows(y0):
    with pytest.raises(ValueError, match="y0: steps of each sample need a batch dimension, got shape"):
        solve(lambda t, y: y, y0, T)

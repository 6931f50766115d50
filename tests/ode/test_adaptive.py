"""Adaptive steps of the whole batch: torchdiffeq's numbers, accuracy, failures."""

import math
import pickle
import re

import pytest
import torch
import torchdiffeq

import flowkern
from flowkern.ode import SolverWarning, Status
from tests.ode.fields import Field, close, decay, logistic, spiral

ORDERS = {"adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 5, "tsit5": 5, "dopri8": 8}
METHODS = ("bosh3", "dopri5", "tsit5", "dopri8")  # whose tolerances may be small
T = torch.tensor([0.0, 0.3, 0.55, 2.0], dtype=torch.float64)
STOPS = torch.tensor([-0.7, -0.4, 0.4, 0.7], dtype=torch.float64)
OPTIONS = {
    "default": {},
    "first_step": {"first_step": 0.05},
    "bounds": {"min_step": 0.01, "max_step": 0.1},
    "shortest": {"min_step": 2.5},
    "factors": {"safety": 0.8, "ifactor": 3.0, "dfactor": 0.5},
    "step_t": {"step_t": STOPS},
    "jump_t": {"jump_t": STOPS},
    "both": {"jump_t": STOPS[:2], "step_t": STOPS[2:]},
    "norm": {"norm": lambda y: y.abs().max()},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_numbers_of_torchdiffeq(options):
    """Of its dopri5: the same steps, so the same outputs to rounding, from as many evaluations."""
    for t in (T, -T):
        field, y0 = counted(Field(torch.float64)), torch.randn(5, 3, dtype=torch.float64)
        call = dict(method="dopri5", rtol=1e-5, atol=1e-6, options=options)
        want, evaluations = torchdiffeq.odeint(field, y0, t, **call), field.take()
        close(flowkern.odeint(field, y0, t, **call), want)
        assert field.take() == evaluations


@pytest.mark.parametrize("method", ["adaptive_heun", "fehlberg2", "bosh3", "dopri8"])
def test_numbers_of_torchdiffeqs_other_methods(method):
    """Those between steps too, where torchdiffeq's are as right as those of its steps."""
    field, y0 = Field(torch.float64), torch.randn(5, 3, dtype=torch.float64)
    for sign in (1, -1):
        options = {} if method == "adaptive_heun" else {"step_t": sign * T[1:]}
        call = dict(method=method, rtol=1e-4, atol=1e-5, options=options)
        want = torchdiffeq.odeint(field, y0, sign * T, **call)
        close(flowkern.odeint(field, y0, sign * T, **call), want)


@pytest.mark.parametrize("method, order", ORDERS.items())
def test_order_of_convergence(method, order):
    """Errors at the end of steps of one size fall by 2^order for half of it (tsit5: by almost 2^6)."""
    field, y0, solution = spiral(5)
    errors = []
    for steps in (8, 16):
        h = 2 / steps
        options = {"min_step": h, "max_step": h}
        states = flowkern.odeint(field, y0, [0.0, 2.0], method=method, options=options)
        errors.append((states[-1] - solution(torch.tensor(2.0).double())).norm())
    assert -0.2 < math.log2(errors[0] / errors[1]) - order < 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jumps(dtype):
    """Each side of a jump is seen by its own steps: none is rejected, and the solution is exact."""
    y0, seen = torch.ones(2, dtype=dtype), []

    def field(t, y):
        seen.append(t)
        return torch.where(t < 0.4, 1.0, -2.0).to(dtype).expand_as(y)

    options = {"jump_t": [0.4], "first_step": 0.3}
    for sign in (1, -1):
        seen.clear()
        times = [0.0, 0.4, 1.0][::sign]
        states = flowkern.odeint(field, y0, times, rtol=1e-6, atol=1e-6, options=options)
        want = torch.tensor([1.0, 1.4, 0.2] if sign == 1 else [1.0, 2.2, 1.8], dtype=dtype)
        close(states, want.unsqueeze(1).expand(3, 2))
        assert len(seen) < 30


@pytest.mark.parametrize("rtol", [1e-5, (1e-3, 1e-6)])
def test_numbers_of_torchdiffeq_for_tuples(rtol):
    field = Field(torch.float64)
    y0 = torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    want = torchdiffeq.odeint(field.pair, y0, T, rtol=rtol)
    for got, part in zip(flowkern.odeint(field.pair, y0, T, rtol=rtol), want, strict=True):
        close(got, part)


def counted(field):
    """The field, which counts its evaluations; take() tells and forgets them."""
    field.register_forward_hook(lambda *_: field.seen.append(1))

    def take():
        count = len(field.seen)
        field.seen.clear()
        return count

    field.take = take
    return field


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_accuracy(method, rtol):
    """The error at arbitrary times is of the size of the tolerance."""
    rates = torch.tensor([[0.1], [1.0], [5.0]], dtype=torch.float64)
    field, solution = decay(rates)
    y0 = torch.ones(3, 2, dtype=torch.float64)
    for t in (T, -T / 2):
        got = flowkern.odeint(field, y0, t, method=method, rtol=rtol, atol=rtol)
        want = torch.stack([solution(y0, t[0], s) for s in t])
        assert ((got - want).abs() / (1 + want.abs())).max() < 40 * rtol


def test_dopri8_is_of_its_order_at_step_t():
    """Between steps it is of a lower order, which shows at small tolerances."""
    field, solution = decay(torch.tensor([[0.1], [1.0], [2.0]], dtype=torch.float64))
    y0, t, tolerance = torch.ones(3, 2, dtype=torch.float64), torch.linspace(0, 10, 41).double(), 1e-10
    want, errors = torch.stack([solution(y0, t[0], s) for s in t]), []
    for options in ({}, {"step_t": t}):
        call = dict(method="dopri8", rtol=tolerance, atol=tolerance, options=options)
        errors.append((flowkern.odeint(field, y0, t, **call) - want).abs().max())
    assert 10 * errors[1] < errors[0] < 1000 * tolerance and errors[1] < 10 * tolerance


def test_outputs_do_not_change_the_steps():
    """Dense output: more times, as many evaluations, and the same values where they are shared."""
    field, y0 = counted(Field(torch.float64)), torch.randn(5, 3, dtype=torch.float64)
    few, evaluations = flowkern.odeint(field, y0, T, method="tsit5"), field.take()
    many = flowkern.odeint(field, y0, torch.cat((T, torch.linspace(0, 2, 33))).sort().values, method="tsit5")
    assert field.take() == evaluations
    for state in few:
        assert (many == state).flatten(1).all(1).any()


@pytest.mark.parametrize("method", ORDERS)
def test_gradients(method):
    """Against finite differences of a solve with given steps, and of the solution."""
    field = Field(torch.float64)
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64, requires_grad=True)
    tolerance = 1e-9 if method in METHODS else 0.1
    call = dict(method=method, rtol=tolerance, atol=tolerance, options={"first_step": 0.1, "max_step": 0.1})
    inputs = y0, t, *field.parameters()
    assert torch.autograd.gradcheck(
        lambda y0, t, *_: flowkern.odeint(field, y0, t, **call), inputs, rtol=1e-3, atol=1e-4
    )


def test_gradient_of_a_time_at_the_beginning():
    y0, t = torch.ones(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    states = flowkern.odeint(lambda t, y: 2 * y, y0, t)
    (grad,) = torch.autograd.grad(states[2].sum(), t)
    close(grad, torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (0, 3)])
def test_shapes_and_times(method, shape):
    y0 = torch.rand(shape, dtype=torch.float64)

    def solve(t):
        return flowkern.odeint(lambda t, y: -y, y0, t, method=method, rtol=1e-6, atol=1e-6)

    torch.testing.assert_close(solve([0.5]), y0.unsqueeze(0))
    got = solve([1.0, 1.0, 0.5, 0.5])
    later = y0 * math.exp(0.5)
    torch.testing.assert_close(got, torch.stack((y0, y0, later, later)), rtol=1e-4, atol=0)


def test_a_batch_of_none_has_a_graph():
    """Gradients of what func uses are zero, not missing."""
    field, y0 = Field(torch.float64), torch.zeros(0, 3, dtype=torch.float64)
    for options in ({}, {"per_sample": True}):
        states = flowkern.odeint(field, y0, T, options=options)
        grads = torch.autograd.grad(states.sum(), [*field.parameters()])
        assert not any(grad.any() for grad in grads)


def test_a_part_without_elements():
    """It has no error, and does not spoil that of the others."""
    y0 = torch.rand(3, 2, dtype=torch.float64)
    states, none = flowkern.odeint(lambda t, s: (-s[0], s[1]), (y0, y0[:, :0]), T)
    torch.testing.assert_close(states[-1], y0 * math.exp(-2), rtol=1e-5, atol=0)
    assert none.shape == (4, 3, 0)


def test_complex_states():
    y0 = torch.randn(3, 2, dtype=torch.complex128)
    want = torchdiffeq.odeint(lambda t, y: 1j * t * y, y0, T)
    close(flowkern.odeint(lambda t, y: 1j * t * y, y0, T), want)


def test_callbacks():
    seen = []
    for library in (torchdiffeq, flowkern):
        field = Field(torch.float64)
        for name in ("step", "accept_step", "reject_step"):
            note = lambda t, y, h, name=name: field.seen.append((name, t.item(), h.item()))  # noqa: E731
            setattr(field, f"callback_{name}", note)
        torch.manual_seed(0)
        y0, options = torch.randn(5, 3, dtype=torch.float64), {"first_step": 2.0}
        library.odeint(field, y0, -T, method="dopri5", options=options)
        seen.append(field.seen)
        torch.manual_seed(0)
    names = [[name for name, *_ in one] for one in seen]
    assert "reject_step" in names[0] and len(names[0]) == len(names[1])


@pytest.mark.parametrize("per_sample", [False, True])
def test_under_a_compiler(per_sample):
    """Steps depend on numbers: the solve interrupts the graph, and is the same."""
    field, y0, options = Field(torch.float64), torch.randn(4, 3).double(), {"per_sample": per_sample}

    def solve(y):
        return 2 * flowkern.odeint(field, 2 * y, T, options=options)

    close(torch.compile(solve, backend="aot_eager")(y0), solve(y0))


# --- solves that fail ------------------------------------------------------------------------------

BLOW_UP = torch.tensor([[0.5], [2.0]], dtype=torch.float64)  # y' = y² ends at t = 1/y0


@pytest.mark.parametrize(
    "field, y0, options, status, message",
    [
        (lambda t, y: y * y, BLOW_UP, {}, Status.STEP_UNDERFLOW, "fell below the resolution of t"),
        (lambda t, y: -y, BLOW_UP * math.nan, {}, Status.NON_FINITE, "is not finite"),
        (lambda t, y: (1 - t).log() + 0 * y, BLOW_UP, {}, Status.NON_FINITE, "is not finite"),
        (lambda t, y: 1e8 * (1 - y), BLOW_UP, {"max_num_steps": 50}, Status.STEP_LIMIT, "max_num_steps"),
        (lambda t, y: (1 - t).log() + 0 * y, BLOW_UP, {"min_step": 0.1}, Status.NON_FINITE, "is not finite"),
    ],
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_failures(field, y0, options, status, message, per_sample):
    """An error that says why, or a warning and NaN from there on; never a hang."""
    options, t = {**options, "per_sample": per_sample}, [0.0, 1e-9, 1.5]
    with pytest.raises(flowkern.SolverError, match=message) as raised:
        flowkern.odeint(field, y0, t, rtol=1e-5, atol=1e-5, options=options)
    assert (raised.value.status == status).any()
    with pytest.warns(SolverWarning, match=message) as warned:
        got = flowkern.odeint(field, y0, t, rtol=1e-5, atol=1e-5, options=options | {"on_failure": "warn"})
    assert warned[0].filename == __file__
    for told in (raised.value, warned[0].message):
        copied = pickle.loads(pickle.dumps(told))  # as between processes
        assert (copied.status == status).any() and re.search(message, str(copied)) and str(copied) == str(told)
    torch.testing.assert_close(got[0], y0, equal_nan=True)
    assert got[2, -1].isnan().all()


@pytest.mark.parametrize(
    "call, message",
    [
        ({"options": {"on_failure": "ignore"}}, "on_failure: expected 'raise' or 'warn', got 'ignore'"),
        ({"options": {"max_step": -1.0}}, "min_step <= max_step and max_step > 0, got 0.0 and -1.0"),
        ({"options": {"min_step": 2.0, "max_step": 1.0}}, "expected 0 <= min_step <= max_step"),
        ({"options": {"first_step": 0.0}}, "first_step: expected a finite number above 0, got 0.0"),
        ({"options": {"first_step": math.nan}}, "first_step: expected a finite number above 0, got nan"),
        ({"options": {"max_num_steps": -1}}, "max_num_steps: expected 1 or more, got -1"),
        ({"options": {"safety": 0.0}}, "0 < safety <= 1 and 0 < dfactor < 1 <= ifactor, finite, got 0.0, 0.2"),
        ({"options": {"safety": 3.0}}, "expected 0 < safety <= 1 .*, got 3.0, 0.2 and 10.0"),
        ({"options": {"dfactor": 1.0}}, "0 < dfactor < 1 <= ifactor, finite, got 0.9, 1.0 and 10.0"),
        ({"options": {"ifactor": 0.5}}, "dfactor < 1 <= ifactor, finite, got 0.9, 0.2 and 0.5"),
        ({"rtol": torch.tensor([[1e-3], [-1e-3]])}, "rtol: expected a finite number, 0 or more, got -0.001"),
        ({"atol": torch.tensor([[1e-3], [math.nan]])}, "atol: expected a finite number, 0 or more, got nan"),
        ({"y0": BLOW_UP.to("meta")}, "y0: adaptive steps depend on values, which the meta device has not"),
        ({"atol": math.inf}, "atol: expected a finite number, 0 or more, got inf"),
        ({"rtol": torch.tensor([[1e-3], [math.inf]])}, "rtol: expected a finite number, 0 or more, got inf"),
        ({"rtol": -1e-3}, "rtol: expected a finite number, 0 or more, got -0.001"),
        ({"atol": math.nan}, "atol: expected a finite number, 0 or more, got nan"),
    ],
)
def test_errors_name_the_argument(call, message):
    call = {"func": logistic, "y0": BLOW_UP, "t": [0.0, 1.0], **call}
    with pytest.raises(ValueError, match=message):
        flowkern.odeint(**call)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": 3}, "options: norm: expected a function, got 3"),
        ({"min_step": None}, "options: min_step: expected a number, got None"),
        ({"step_t": 0.5}, r"options: step_t: expected times, a tensor \(T,\) or a sequence of numbers, got 0.5"),
        ({"jump_t": ["a"]}, "options: jump_t: expected times"),
        ({"per_sample": "yes"}, "options: per_sample: expected True or False, got 'yes'"),
    ],
)
def test_options_of_another_type(options, message):
    with pytest.raises(TypeError, match=message):
        flowkern.odeint(logistic, BLOW_UP, [0.0, 1.0], options=options)

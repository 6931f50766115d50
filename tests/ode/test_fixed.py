"""Fixed grids: torchdiffeq's numbers, orders of convergence, times, one graph."""

import itertools
import math

import pytest
import torch
import torchdiffeq
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flowkern
from flowkern.ode import Status
from flowkern.ode import stages as _stages
from tests.ode.fields import Field, close, logistic, spiral

SHARED = ("euler", "midpoint", "heun2", "heun3", "rk4")
METHODS = (*SHARED, "rk4_classic")
ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "rk4_classic": 4}
OPTIONS = {
    "grid": {},
    "step_size": {"step_size": 0.1},
    "short_last_step": {"step_size": 0.07},
    "cubic": {"step_size": 0.07, "interp": "cubic"},
    "perturb": {"step_size": 0.3, "perturb": True},
    "constructor": {"grid_constructor": lambda func, y0, t: torch.cat((t[:1], t.mean()[None], t[-1:]))},
}
T = torch.tensor([0.0, 0.25, 0.6, 1.0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", SHARED)
def test_numbers_of_torchdiffeq(method, options):
    """In both directions, for tensors and tuples, in float32 and float64."""
    for dtype, sign in ((torch.float64, 1), (torch.float32, -1)):
        field, y0, t = Field(dtype), torch.randn(5, 3, dtype=dtype), sign * T.to(dtype)
        want = torchdiffeq.odeint(field, y0, t, method=method, options=options)
        close(flowkern.odeint(field, y0, t, method=method, options=options), want)
        pair = y0, torch.zeros(5, dtype=dtype)
        want = torchdiffeq.odeint(field.pair, pair, t, method=method, options=options)
        got = flowkern.odeint(field.pair, pair, t, method=method, options=options)
        assert isinstance(got, tuple)
        for got_part, want_part in zip(got, want, strict=True):
            close(got_part, want_part)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method):
    """Errors at the end fall by 2^order for half the step."""
    field, y0, solution = spiral(5)
    errors = []
    for steps in (20, 40):
        t = torch.linspace(0, 2, steps + 1, dtype=torch.float64)
        errors.append((flowkern.odeint(field, y0, t, method=method)[-1] - solution(t[-1])).norm())
    assert abs(math.log2(errors[0] / errors[1]) - ORDERS[method]) < 0.25


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method):
    """To the state, the times and the field, through steps and interpolated outputs."""
    field = Field(torch.float64)
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64, requires_grad=True)

    def solve(y0, t, *parameters, **options):
        return flowkern.odeint(field, y0, t, method=method, options=options)

    inputs = y0, t, *field.parameters()
    assert torch.autograd.gradcheck(solve, inputs)
    wanted = torchdiffeq.odeint(field, y0, t, method="rk4", options={"step_size": 0.2})
    got = solve(y0, t, step_size=0.2)
    if method == "rk4":
        for a, b in zip(*(torch.autograd.grad(s.square().sum(), inputs) for s in (got, wanted))):
            close(a, b)


def test_second_derivatives():
    field, y0 = Field(torch.float64), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda y: flowkern.odeint(field, y, T.double(), method="rk4"), y0)


@pytest.mark.parametrize("options", [{}, {"step_size": 0.3}])
@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (0, 3), (2, 0)])
def test_shapes_and_times(shape, options):
    """One time, no time between times, scalars, one feature, empty batches."""
    y0 = torch.rand(shape, dtype=torch.float64)

    def solve(t):
        return flowkern.odeint(lambda t, y: -y, y0, t, method="rk4", options=options)

    torch.testing.assert_close(solve([0.5]), y0.unsqueeze(0))
    torch.testing.assert_close(solve([0.5, 0.5]), torch.stack((y0, y0)))
    later = y0 * math.exp(-0.5)
    for t in ([0.0, 0.0, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5]):
        want = torch.stack((y0, y0, later, later)) if t[-1] > t[0] else None
        want = torch.stack((y0, y0, y0 / later * y0, y0 / later * y0)) if want is None else want
        torch.testing.assert_close(solve(t), want, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("step_size", [2.0, 1e20, math.inf])
def test_a_step_longer_than_the_time(step_size):
    """It is one step to the end."""
    y0, options = torch.rand(3, dtype=torch.float64), {"step_size": step_size}
    for t in (T, -T):
        states = flowkern.odeint(logistic, y0, t, method="rk4", options=options)
        close(states[-1], flowkern.odeint(logistic, y0, t[[0, -1]], method="rk4")[-1])


@pytest.mark.parametrize("options", [{}, {"step_size": 0.3}])
def test_gradient_of_a_time_at_the_beginning(options):
    """Where no time has passed, dy(t)/dt is f."""
    t = torch.ones(2, dtype=torch.float64, requires_grad=True)
    states = flowkern.odeint(lambda t, y: 2 * y, torch.ones(1).double(), t, method="rk4", options=options)
    (grad,) = torch.autograd.grad(states[1].sum(), t)
    close(grad, torch.tensor([-2.0, 2.0], dtype=torch.float64))


def test_gradient_of_times_in_a_list():
    end = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    states = flowkern.odeint(lambda t, y: y * 0 + 3, torch.ones(1).double(), [0.0, end], method="euler")
    assert torch.autograd.grad(states[-1].sum(), end)[0] == 3


def test_gradients_after_inference_mode():
    """The weights of a method, which are kept, were first needed there."""
    _stages._coefficients.cache_clear()
    y0, t = torch.ones(2, dtype=torch.float64), T.double().requires_grad_()
    with torch.inference_mode():
        flowkern.odeint(logistic, y0, t, method="heun3")
    flowkern.odeint(logistic, y0 / 2, t, method="heun3").sum().backward()


def test_complex_and_half_states():
    y0 = torch.randn(3, 2, dtype=torch.complex128)
    want = torchdiffeq.odeint(lambda t, y: 1j * t * y, y0, T.double(), method="rk4")
    close(flowkern.odeint(lambda t, y: 1j * t * y, y0, T.double(), method="rk4"), want)
    half = flowkern.odeint(lambda t, y: -y, torch.ones(3, dtype=torch.bfloat16), T, method="rk4")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half[-1].float(), torch.full((3,), math.exp(-1)), rtol=2e-2, atol=0)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_autocast(method):
    """The field computes in half precision, the solver does not."""
    field, y0 = Field(torch.float32), torch.randn(4, 3)
    call = dict(method=method, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        got = flowkern.odeint(field, y0, T, **call)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, flowkern.odeint(field, y0, T, **call), rtol=0.05, atol=0.05)


def test_derivatives_that_broadcast():
    y0 = torch.rand(4, 3)
    got = flowkern.odeint(lambda t, y: y.new_ones(()), y0, T, method="rk4")
    torch.testing.assert_close(got, y0 + T.view(4, 1, 1))


def test_callback():
    for library in (torchdiffeq, flowkern):
        field = Field(torch.float64)
        field.callback_step = lambda t, y, h: field.seen.append((t.item(), h.item()))
        library.odeint(field, torch.ones(1, 3).double(), -T.double(), method="euler")
        want = torch.tensor([(0, 0.25), (-0.25, 0.35), (-0.6, 0.4)])
        close(torch.tensor(field.seen), want)


def test_one_graph():
    """With the grid in a tensor, and with a step size where the times are a list."""
    field, y0, t = Field(torch.float32), torch.randn(4, 3), torch.linspace(0, 1, 4)

    def by_grid(y, t):
        return flowkern.odeint(field, y, t, method="rk4")

    def by_step(y):
        return flowkern.odeint(field, y, [0.0, 0.5, 1.0], method="midpoint", options={"step_size": 0.3})

    for function, arguments in ((by_grid, (y0, t)), (by_step, (y0,))):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*arguments), function(*arguments), rtol=1e-5, atol=1e-6)


def test_transforms():
    """torch.func sees plain operations: Jacobians and vmap through a solve."""
    field, y0 = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def solve(y):
        return flowkern.odeint(field, y, T.double(), method="rk4")[-1]

    want = torch.stack([torch.autograd.functional.jacobian(solve, y) for y in y0])
    close(torch.func.vmap(torch.func.jacrev(solve))(y0), want)
    close(torch.func.vmap(torch.func.jacfwd(solve))(y0), want)

    def until(end, y):
        return flowkern.odeint(field, y, torch.stack((0 * end, end)), method="rk4")[-1]

    ends = torch.tensor([0.3, 1.0, -0.5, 0.0], dtype=torch.float64)
    close(torch.func.vmap(until)(ends, y0), torch.stack([*map(until, ends, y0)]))


class OnHost(TorchDispatchMode):
    """Counts the operations with a tensor on the CPU, by which another device would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += any(
            isinstance(part, torch.Tensor) and part.device.type == "cpu" for part in tree_leaves((args, kwargs, result))
        )
        return result


def operations_on_host(t, solve=flowkern.odeint, **options):
    """How many a solve on the meta device, which has no values, and its gradients have; not the first solve."""
    field, y0 = Field(torch.float32).to("meta"), torch.empty(4, 3, device="meta", requires_grad=True)
    for _ in range(2):
        with flowkern.backend("reference"), OnHost() as mode:
            states = solve(field, y0, t, method="rk4", options=options)
            torch.autograd.grad(states.sum(), (y0, *field.parameters()))
    assert states.shape == (len(t), 4, 3)
    return mode.count


@pytest.mark.parametrize("solve", [flowkern.odeint, flowkern.odeint_adjoint])
@pytest.mark.parametrize("options", [{}, {"perturb": True}, {"per_sample": True}])
def test_a_solve_stays_on_its_device(solve, options):
    """Where t is the grid nothing is read back or copied, so that a CUDA graph can be captured."""
    assert operations_on_host(torch.empty(5, device="meta", requires_grad=True), solve, **options) == 0
    if options.get("per_sample"):
        assert operations_on_host(torch.empty(5, 4, device="meta"), solve, **options) == 0


def test_steps_on_their_device():
    """With a step size and times on the host, as many operations there for many steps as for few."""
    for options in ({}, {"interp": "cubic"}, {"per_sample": True}):
        few, many = (operations_on_host([0.0, 0.35, 1.0], step_size=1 / n, **options) for n in (4, 64))
        assert few == many


def test_operations_on_the_host_are_seen():
    with flowkern.backend("reference"), OnHost() as mode:
        states = flowkern.odeint(lambda t, y: y + torch.ones(()), torch.empty(3, device="meta"), T, method="euler")
    assert states.is_meta and mode.count > 3


@pytest.mark.parametrize("options", [{}, {"step_size": 0.1}])
@pytest.mark.parametrize("per_sample", [False, True])
def test_status(options, per_sample):
    """y' = y² leaves the floats on the way for one row: an error or a warning, if one is asked for."""
    y0, t = torch.tensor([[0.1], [9.0], [0.2]]), torch.linspace(0, 2, 41)
    call = dict(method="rk4", options={**options, "per_sample": per_sample})
    states = flowkern.odeint(lambda t, y: y * y, y0, t, **call)
    assert states[:, [0, 2]].isfinite().all() and not states[-1, 1].isfinite()
    message = "rk4 did not reach the last time: (1 of 3 samples: )?the state or its derivative is not finite"
    want = [Status.OK, Status.NON_FINITE, Status.OK] if per_sample else Status.NON_FINITE
    call["options"]["on_failure"] = "raise"
    with pytest.raises(flowkern.SolverError, match=message) as raised:
        flowkern.odeint(lambda t, y: y * y, y0, t, **call)
    assert raised.value.status.tolist() == want
    call["options"]["on_failure"] = "warn"
    with pytest.warns(flowkern.ode.SolverWarning, match=message) as warned:
        again = flowkern.odeint(lambda t, y: y * y, y0, t, **call)
    assert warned[0].message.status.tolist() == want
    assert warned[0].filename == __file__
    torch.testing.assert_close(again, states, equal_nan=True)
    states = flowkern.odeint(lambda t, y: -y, y0, t, **call)  # without a warning
    assert states.isfinite().all()


def test_status_of_tuples_and_under_a_compiler():
    pair, options = (torch.ones(3), torch.full((2,), 9.0)), {"on_failure": "raise"}
    grow = lambda t, s: (-s[0], s[1] ** 2)  # noqa: E731
    with pytest.raises(flowkern.SolverError) as raised:
        flowkern.odeint(grow, pair, torch.linspace(0, 2, 21), method="rk4", options=options)
    assert raised.value.status.tolist() == Status.NON_FINITE
    solve = torch.compile(
        lambda y: flowkern.odeint(lambda t, y: y * y, y, T, method="euler", options=options),
        backend="aot_eager",
    )
    close(solve(torch.ones(3)), flowkern.odeint(lambda t, y: y * y, torch.ones(3), T, method="euler"))
    with pytest.raises(flowkern.SolverError):
        solve(torch.full((3,), 1e30))


def in_turn(*outs):
    turns = itertools.cycle(outs)
    return lambda t, y: torch.sub(t, y, out=next(turns))


def warmed_up(out):
    """Memory of its own for the first call, as before a graph is captured."""
    outs = itertools.chain((out.clone(),), itertools.repeat(out))
    return lambda t, y: torch.sub(t, y, out=next(outs))


@pytest.mark.parametrize("method", ["rk4", "dopri5", "tsit5"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_field_that_returns_the_same_memory(method, per_sample):
    """As captured graphs do, as `out=` does; or each time the same constant, which is as right."""
    y0, out = torch.rand(4, 3, dtype=torch.float64), torch.empty(4, 3, dtype=torch.float64)
    call = dict(method=method, rtol=1e-6, atol=1e-6, options={"per_sample": per_sample})
    with torch.no_grad():
        want = flowkern.odeint(lambda t, y: t - y, y0, T.double(), **call)
        for field in (
            lambda t, y: torch.sub(t, y, out=out),
            lambda t, y: torch.sub(t, y, out=out).detach(),  # another tensor, on the same memory
            lambda t, y: out.copy_(t - y).T.T,
            in_turn(out.clone(), out),
            warmed_up(out),
        ):
            assert torch.equal(flowkern.odeint(field, y0, T.double(), **call), want)
    constant = flowkern.odeint(lambda t, y: out.fill_(2.0), y0, T.double(), **call)
    close(constant, y0 + 2 * T.double().view(4, 1, 1))


def test_a_compiled_field_that_returns_the_same_memory():
    def solve(y):
        out = torch.empty_like(y)
        return flowkern.odeint(lambda t, y: torch.sub(t, y, out=out), y, T, method="rk4")

    y0 = torch.rand(4, 3)
    compiled = torch.compile(solve, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(y0), flowkern.odeint(lambda t, y: t - y, y0, T, method="rk4"))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"method": "rk5"}, ValueError, "method: expected one of .*, got 'rk5'"),
        ({"event_fn": logistic}, NotImplementedError, "event_fn"),
        ({"t": [0.0, 1.0, 0.5]}, ValueError, "t: expected times that rise or fall"),
        ({"t": [0.0, math.inf]}, ValueError, "t: expected times that rise or fall"),
        ({"t": 1.0}, TypeError, "t: expected a tensor or a list of numbers, got float"),
        ({"t": torch.zeros(2, 2)}, ValueError, r"t: expected shape \(T,\), got \(2, 2\)"),
        ({"t": torch.arange(3)}, TypeError, "t: expected a floating-point dtype, got torch.int64"),
        ({"y0": [1.0]}, TypeError, "y0: expected a tensor or a tuple of tensors, got list"),
        (
            {"y0": (torch.ones(3), torch.ones(3, device="meta"))},
            ValueError, "y0: expected parts on one device, got cpu, meta",
        ),
        ({"t": torch.ones(2, device="meta")}, ValueError, "t: expected device cpu as y0 has, got meta"),
        ({"y0": ()}, TypeError, r"y0: expected a tensor or a tuple of tensors, got \(\)"),
        ({"y0": torch.eye(3).to_sparse()}, TypeError, "y0: expected a dense tensor, got torch.sparse_coo"),
        ({"func": None}, TypeError, "func: expected a function .*, got NoneType"),
        ({"func": lambda t, y: y.to("meta")}, ValueError, r"func: .* \(3,\) on cpu, got .* \(3,\) on meta"),
        ({"method": ["rk4"]}, ValueError, r"method: expected one of .*, got \['rk4'\]"),
        ({"t": None}, TypeError, "t: expected a tensor or a list of numbers, got NoneType"),
        ({"t": ["a"]}, TypeError, "t: expected a tensor or a list of numbers, got list"),
        ({"options": {"grid_constructor": 3}}, TypeError, "options: grid_constructor: expected a function .*, got 3"),
        ({"options": [1]}, TypeError, "options: expected a dict, got list"),
        ({"options": {"step_size": "a"}}, TypeError, "options: step_size: expected a number, got 'a'"),
        ({"rtol": None}, TypeError, "rtol: expected a number, got None"),
        ({"atol": torch.ones(4)}, ValueError, r"atol: expected a number or a tensor like y0, \(3,\), got shape"),
        ({"y0": torch.ones(3).long()}, TypeError, "y0: expected a floating-point or complex dtype"),
        ({"options": {"step_size": 0.0}}, ValueError, "step_size: expected a positive number"),
        ({"options": {"on_failure": True}}, ValueError, "on_failure: expected None, 'raise' or 'warn', got True"),
        (
            {"options": {"per_sample": True, "grid_constructor": max}},
            ValueError, "grid_constructor: not with per_sample",
        ),
        ({"options": {"interp": "quintic"}}, ValueError, "interp: expected 'linear' or 'cubic'"),
        ({"func": lambda t, y: 1j * y}, ValueError, "func: expected a derivative like the state"),
        ({"func": lambda t, y: y[:2]}, ValueError, "func: expected a derivative like the state"),
        ({"func": lambda t, y: y[:, None] * y}, ValueError, "func: expected a derivative like"),
        ({"func": lambda t, y: None}, TypeError, "func: expected a tensor like the state, got NoneType"),
        ({"rtol": (1e-3, 1e-3)}, ValueError, "rtol: expected a number or one for each part"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    call = {"func": lambda t, y: -y, "y0": torch.ones(3), "t": [0.0, 1.0], "method": "euler", **change}
    with pytest.raises(error, match=message):
        flowkern.odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)


@pytest.mark.parametrize(
    "func, message",
    [
        (lambda t, y: (y[1], y[0]), r"derivative like the state, .* \(3, 2\) on cpu, got .* \(2, 3\)"),
        (lambda t, y: y[:1], "func: expected a derivative of 2 parts, got 1"),
        (lambda t, y: y[0], "func: expected a derivative of 2 parts, got Tensor"),
    ],
)
def test_parts_of_a_derivative(func, message):
    """Each is like its part of the state; as many elements in other shapes will not do."""
    with pytest.raises(ValueError, match=message):
        flowkern.odeint(func, (torch.ones(3, 2), torch.ones(2, 3)), [0.0, 1.0], method="euler")


def test_unknown_options_are_named():
    with pytest.warns(UserWarning, match="euler has none called stepsize"):
        flowkern.odeint(lambda t, y: -y, torch.ones(3), [0.0, 1.0], method="euler", options={"stepsize": 1})

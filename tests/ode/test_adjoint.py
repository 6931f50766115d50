"""The continuous adjoint: torchdiffeq's gradients, those of backpropagation, memory."""

import functools
import math

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
    size = {"step_size": 0.025} if method == "rk4" else {}
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


# --- what is around the call ---------------------------------------------------------------------------

UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)


class Growth(torch.nn.Module):
    """y' = w·y, or i·w·y."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.w, self.factor = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64)), factor

    def forward(self, t, y):
        return self.factor * self.w * y


def solved(field, y0, **call):
    return flowkern.odeint_adjoint(field, y0, UNIT, **call)[-1].sum()


def ones():
    return torch.ones(1, dtype=torch.float64, requires_grad=True)


def test_the_parameters_of_a_replica_get_gradients():
    """torch.nn.DataParallel gives its replicas tensors as attributes, and no parameters."""
    field, y0 = Growth(), ones()
    replica = field._replicate_for_data_parallel()
    replica.w = field.w.clone()
    solved(replica, y0).backward()
    close(field.w.grad, torch.tensor(0.5, dtype=torch.float64).exp(), rtol=1e-6)


class Around(torch.nn.Module):
    """A module that calls the solve, in one of the ways in which func may hold its network."""

    def __init__(self, way):
        super().__init__()
        self.field, self.way = Growth(), way

    def forward(self, y0):
        func = {
            "module": self.field,
            "method": self.field.forward,
            "closure": lambda t, y: self.field(t, y),
            "partial": functools.partial(torch.nn.Module.__call__, self.field),
        }[self.way]
        return solved(func, y0, adjoint_params=tuple(self.field.parameters()))


@pytest.mark.parametrize("way", ["module", "method", "closure", "partial"])
def test_the_backward_uses_the_weights_of_the_forward(way):
    """functional_call takes them out again; w = 1 in place of 0.5."""
    model, y0, w = Around(way), ones(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    torch.func.functional_call(model, {"field.w": w}, (y0,)).backward()
    for grad in (w.grad, y0.grad):
        close(grad.reshape(()), torch.tensor(1.0, dtype=torch.float64).exp(), rtol=1e-6)
    assert model.field.w.grad is None and model.field.w == 0.5


def test_weights_that_cannot_be_put_back_are_missed():
    """func has its network where nothing is looked for: an error, in place of gradients that are zero."""
    hidden = {"model": Around("module")}

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = hidden["model"]

        def forward(self, y0):
            func = lambda t, y: hidden["model"].field(t, y)  # noqa: E731
            return solved(func, y0, adjoint_params=tuple(self.parameters()))

    Outer()(ones()).backward()
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    loss = torch.func.functional_call(Outer(), {"model.field.w": w}, (ones(),))
    with pytest.raises(RuntimeError, match=r"adjoint_params: func has no gradient to one of shape \(\), but uses"):
        loss.backward()


def test_weights_that_depend_on_each_other_count_once():
    """Of v and 2v, both weights of a network: v gets its own derivative, and twice the other's."""
    field = Field(torch.float64)
    results = []
    for solve in (flowkern.odeint, flowkern.odeint_adjoint):
        v = torch.full((4,), 0.1, dtype=torch.float64, requires_grad=True)
        weights = {"inner.bias": v, "outer.bias": 2 * v[:3]}

        class Solve(torch.nn.Module):
            def __init__(self, solve=solve):
                super().__init__()
                self.field, self.solve = field, solve

            def forward(self, y0):
                return self.solve(self.field, y0, T, method="dopri5")[-1].square().sum()

        weights = {f"field.{name}": tensor for name, tensor in weights.items()}
        torch.func.functional_call(Solve(), weights, torch.ones(2, 3).double()).backward()
        results.append(v.grad)
    close(*results, rtol=1e-6)


def test_parametrizations():
    """Gradients reach what a weight is computed from; kept weights would have none, and are refused."""
    field, results = Field(torch.float64), []
    torch.nn.utils.parametrizations.weight_norm(field.inner)
    for solve in (flowkern.odeint, flowkern.odeint_adjoint):
        results.append(gradients(solve, field, torch.ones(4, 3).double(), T, method="dopri5"))
    for a, b in zip(*results, strict=True):
        close(a, b, rtol=2e-5)
    with torch.nn.utils.parametrize.cached(), pytest.raises(RuntimeError, match=r"not within parametrize.cached\(\)"):
        flowkern.odeint_adjoint(field, torch.ones(4, 3).double(), T)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_second_derivatives(method, per_sample):
    """Those of backpropagation: of a gradient's square by the state, the times and the parameters."""
    field, y0 = Field(torch.float64), torch.randn(4, 3, dtype=torch.float64)
    results = []
    for solve in (flowkern.odeint, flowkern.odeint_adjoint):
        start, times = y0.clone().requires_grad_(), 41 if method == "rk4" else 5
        t = torch.linspace(0, 1, times, dtype=torch.float64, requires_grad=True)
        inputs = start, t, *field.parameters()
        states = solve(field, start, t, method=method, options={"per_sample": per_sample})
        grads = torch.autograd.grad(states[1:].square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for a, b in zip(*results, strict=True):
        close(a, b, rtol=2e-5)


def test_third_derivatives_are_refused():
    y0 = ones()
    (first,) = torch.autograd.grad(solved(Growth(), y0).square(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="odeint_adjoint: has first and second derivatives; odeint has more"):
        torch.autograd.grad(first, y0, create_graph=True)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_field_without_state_or_parameters(per_sample):
    """Of time alone, as an external control, or constant."""
    for func, at_ends in ((lambda t, y: torch.cos(t).expand_as(y), UNIT.cos()), (lambda t, y: torch.ones_like(y), 1)):
        y0, t = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True), UNIT.clone().requires_grad_()
        states = flowkern.odeint_adjoint(func, y0, t, adjoint_params=(), options={"per_sample": per_sample})
        states[-1].sum().backward()
        close(y0.grad, torch.ones(2, 1, dtype=torch.float64))
        close(t.grad, torch.tensor([-2.0, 2.0]).double() * at_ends, rtol=1e-6)


def test_a_complex_state_and_real_parameters():
    for dtype in (torch.complex64, torch.complex128):
        results = []
        for solve in (flowkern.odeint, flowkern.odeint_adjoint):
            field, y0 = Growth(1j), torch.ones(1, dtype=dtype, requires_grad=True)
            loss = solve(field, y0, UNIT)[-1].real.sum()
            results.append(torch.autograd.grad(loss, (y0, field.w)))
        for a, b in zip(*results, strict=True):
            assert a.dtype == b.dtype
            close(a, b, rtol=1e-6)
        assert abs(results[1][1] + torch.tensor(0.5).sin()) < 1e-4


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("recorded", [False, True])
def test_batched_gradients(method, recorded):
    """All rows of a Jacobian at once, as one by one."""
    field, y0 = Field(torch.float64), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    states = flowkern.odeint_adjoint(field, y0, T, method=method)
    inputs, cotangents = (y0, *field.parameters()), torch.eye(states.numel())[::7].double().view(-1, *states.shape)
    call = dict(retain_graph=True, create_graph=recorded)
    got = torch.autograd.grad(states, inputs, cotangents, is_grads_batched=True, **call)
    mapped = torch.func.vmap(lambda v: torch.autograd.grad(states, inputs, v, **call))(cotangents)
    rows = [torch.autograd.grad(states, inputs, v, retain_graph=True) for v in cotangents]
    for a, b, want in zip(got, mapped, zip(*rows), strict=True):
        close(a, torch.stack(want)), close(b, torch.stack(want))


class Halved(Field):
    """It works under autocast alone."""

    def forward(self, t, y):
        return super().forward(t, y.bfloat16())


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_backward_runs_under_the_autocast_of_the_forward(method):
    field, y0, results = Halved(torch.float32), torch.randn(4, 3), []
    for solve in (flowkern.odeint, flowkern.odeint_adjoint):
        with torch.autocast("cpu", torch.bfloat16):
            state = solve(field, y0, T.float(), method=method, rtol=1e-2, atol=1e-2)[-1]
        results.append(torch.autograd.grad(state.sum(), field.parameters()))
    for a, b in zip(*results, strict=True):
        close(a, b, rtol=0.05)


def test_a_name_without_a_value_in_a_closure():
    def func(t, y):
        return -y if t >= 0 else later

    flowkern.odeint_adjoint(func, ones(), UNIT, adjoint_params=())
    later = None
    flowkern.odeint_adjoint(func, ones(), UNIT, adjoint_params=())
    assert later is None


def test_transforms_are_refused():
    with pytest.raises(
        NotImplementedError, match="odeint_adjoint: torch.func's transforms and forward mode do not see it"
    ):
        torch.func.grad(lambda y0: solved(Growth(), y0))(torch.ones(1).double())


@pytest.mark.parametrize("own", [False, True])
def test_tolerances_of_parts(own):
    """For each part of y0, or like y0: the backward takes them, for the gradients of the parts too."""
    field = Field(torch.float64)
    for tolerance in ((1e-9, 1e-8), (torch.full((4, 3), 1e-9), 1e-8)):
        results = []
        for solve, call in ((flowkern.odeint, {}), (flowkern.odeint_adjoint, {"adjoint_params": field.parameters()})):
            y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
            tolerances = dict.fromkeys(("rtol", "atol"), tolerance)
            if own and call:
                call |= {"adjoint_rtol": tolerance, "adjoint_atol": tolerance}
                tolerances = {"rtol": 1e-9, "atol": 1e-9}
            _, total = solve(field.pair, (y0, y0.sum(-1)), T, **tolerances, **call)
            results.append(torch.autograd.grad(total[-1].sum(), (y0, *field.inner.parameters())))
        for a, b in zip(*results, strict=True):
            close(a, b, rtol=1e-5)
    y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    states = flowkern.odeint_adjoint(field, y0, T, rtol=torch.full((4, 3), 1e-9), atol=torch.full((3,), 1e-9))
    close(torch.autograd.grad(states[-1].sum(), y0)[0], gradients(flowkern.odeint, field, y0, T)[0], rtol=100)


@pytest.mark.parametrize(
    "call, error, message",
    [
        ({"adjoint_params": torch.ones(3)}, TypeError, "^adjoint_params: expected a sequence of tensors"),
        ({"adjoint_params": [3]}, TypeError, "^adjoint_params: expected a sequence of tensors"),
        ({"adjoint_rtol": (1e-3, 1e-3)}, ValueError, "^adjoint_rtol: expected a number or one for each part of y0"),
        ({"adjoint_atol": math.inf}, ValueError, "^adjoint_atol: expected a finite number, 0 or more, got inf"),
        ({"adjoint_rtol": torch.tensor([1.0, 1.0, -1.0])}, ValueError, "^adjoint_rtol: expected a finite .*-1"),
        ({"adjoint_method": ["rk4"]}, ValueError, r"^adjoint_method: expected one of .*, got \['rk4'\]"),
        ({"adjoint_options": 3}, TypeError, "^adjoint_options: expected a dict, got int"),
        ({"adjoint_options": {"per_sample": True}}, ValueError, "^adjoint_options: per_sample: backwards"),
        ({"adjoint_options": {"norm": "max"}}, TypeError, "^adjoint_options: norm: .*'seminorm', got 'max'"),
        ({"adjoint_options": {"first_step": -1}}, ValueError, "^adjoint_options: first_step: .*, got -1"),
    ],
)  # fmt: skip
def test_arguments_of_the_backward_are_checked_at_the_call(call, error, message):
    with pytest.raises(error, match=message):
        flowkern.odeint_adjoint(lambda t, y: -y, torch.ones(3), UNIT, **{"adjoint_params": (), **call})


def test_an_unknown_option_of_the_backward_is_named():
    with pytest.warns(UserWarning, match="^adjoint_options: rk4 has none called norm") as warned:
        flowkern.odeint_adjoint(Growth(), ones(), UNIT, method="rk4", adjoint_options={"norm": "seminorm"})
    assert warned[0].filename == __file__

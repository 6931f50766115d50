"""The neural ODE solve's Triton kernels, interpreted: equal to the float64 reference.

Of the environment and the order of imports see tests/conftest.py.
"""

import os
from dataclasses import replace
from unittest import mock

import pytest
import torch

from flowkern.ops._activation import NAMES as ACTIVATIONS
from flowkern.ops._neural_ode import METHODS
from tests.cases.neural_ode import CASES, Case, check, evaluate
from tests.conftest import INTERPRETED

with mock.patch.dict(os.environ, INTERPRETED):
    from triton.runtime.interpreter import InterpretedFunction

    from flowkern.ops._neural_ode import triton as solver
    from flowkern.ops._neural_ode import triton_kernels

pytestmark = pytest.mark.usefixtures("interpreted")

# Few stages, because each is slow here.
QUICK = Case(hidden=(5, 4), method="midpoint", steps=1, times=(0.0, 0.4), batch=3)
SMALLER = {
    "exact three hidden": {"features": 2},
    "jacobian exact": {"features": 2},
    "two directions": {"hidden": (33, 5)},
}


def small(name):
    """The case with few stages; test_every_method has more."""
    case = CASES[name] if name == "wide" else replace(CASES[name], batch=min(CASES[name].batch, 17))
    case = replace(case, **SMALLER.get(name, {}))
    times = case.times if len(case.times) != 3 else case.times[:2]
    method = case.method if case.method in ("midpoint", "heun2") else "euler"
    steps = case.steps if case.checkpoint > 1 else min(case.steps, 2 if len(times) < 3 else 1)
    return replace(case, times=times, method=method, steps=steps)


def raw_arguments(case):
    """What the dispatcher op takes, as the public one makes it."""
    calls = []
    with mock.patch.object(solver.native, "forward", lambda *arguments, ops: calls.append(arguments)):
        with pytest.raises(TypeError):  # the call gives nothing back
            case.solve(*case.tensors())
    y, spec, *tensors = calls[0]
    return y, *tensors[:7], tensors[7:], *map(list, spec[:5]), *spec[5:]


def test_kernels_are_interpreted():
    """If not, something imported Triton before this file did."""
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        assert isinstance(kernel, InterpretedFunction)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name):
    check(small(name), "triton", torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    for gradient in ("discrete", "adjoint"):
        case = replace(QUICK, hidden=(5,), activations=("tanh",), method=method, gradient=gradient)
        check(replace(case, trace=None, kinetic=True), "triton", torch.float64)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_every_activation(kind):
    """Their second derivatives too, in the gradient of the trace."""
    for trace in ("exact", 1):
        case = replace(QUICK, method="euler", activations=(kind, kind), trace=trace)
        check(case, "triton", torch.float64)


@pytest.mark.parametrize(
    "layers, features, batch",
    ((1, 1, 17), (1, 8, 63), (2, 2, 17), (2, 3, 1), (3, 1, 3), (3, 3, 63), (4, 2, 1), (4, 8, 17)),
)
def test_sizes(layers, features, batch):
    hidden = (5, 33, 4)[: layers - 1]
    case = Case(
        features, hidden, ("silu",) * len(hidden), batch, "euler", 1, kinetic=True, rows=True,
        times=(0.0, 0.3), trace="exact" if layers < 4 else 1, jacobian=layers == 4,
    )  # fmt: skip
    check(case, "triton", torch.float64)


def test_what_is_not_asked_for_is_zero():
    """As the specification has it; a cotangent of it then counts for nothing."""
    *arguments, _, _ = raw_arguments(replace(QUICK, method="euler", trace=1))
    arguments = (*arguments, False, False)
    ops = torch.ops.flowkern_triton
    ends, sums, kept = ops.neural_ode(*arguments)
    assert torch.equal(sums[:, 1:], torch.zeros_like(sums[:, 1:])) and (sums[:, 0] != 0).all()
    cotangent = torch.zeros_like(sums)
    cotangent[:, 1:] = 1
    grads = ops.neural_ode_backward(torch.zeros_like(ends), cotangent, ends, kept, False, *arguments)
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_programs_take_several_tiles(monkeypatch):
    """They use the same memory again, and nothing of the tile before is left in what belongs to samples."""
    case = replace(QUICK, method="euler", batch=70, rows=True, trace=1, kinetic=True, jacobian=True)
    want = evaluate(case, *case.tensors(), "triton")
    monkeypatch.setattr(solver, "_PROGRAMS", 1)
    got = evaluate(case, *case.tensors(), "triton")
    for name in ("y", "logabsdet", "kinetic", "jacobian", "grad y", "grad bias0"):
        assert torch.equal(got[name], want[name]), name
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_nan_and_infinity_stay_in_their_row():
    case = replace(QUICK, method="euler", batch=35, trace=1)
    tensors, noise = case.tensors()
    clean = case.solve(tensors, noise)
    tensors["y"][3, 1], tensors["y"][34, 0] = torch.nan, torch.inf
    dirty = case.solve(tensors, noise)
    rows = [n for n in range(35) if n not in (3, 34)]
    assert torch.equal(dirty.y[:, rows], clean.y[:, rows])
    assert torch.equal(dirty.logabsdet[:, rows], clean.logabsdet[:, rows])
    assert dirty.y[-1, 3].isnan().all()


def test_opcheck():
    """Schemas are honest, and the fake kernels agree with the real ones."""
    ops = torch.ops.flowkern_triton
    case = replace(QUICK, hidden=(3,), activations=("tanh",), method="euler", features=2)
    for case in (replace(case, rows=True), replace(case, trace=1, jacobian=True, bias=False)):
        arguments = raw_arguments(case)
        torch.library.opcheck(ops.neural_ode, arguments)
        ends, sums, kept = ops.neural_ode(*arguments)
        call = (torch.ones_like(ends), torch.ones_like(sums), ends, kept, case.rows, *arguments)
        torch.library.opcheck(ops.neural_ode_backward, call)


def test_compile_is_one_graph():
    case = replace(QUICK, method="euler")
    tensors, noise = case.tensors()

    def loss(*values):
        solution = case.solve(dict(zip(tensors, values)), noise)
        return solution.y.square().sum() + solution.logabsdet.sum()

    torch.compiler.reset()
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        values = [v.clone().requires_grad_() for v in tensors.values()]
        value = function(*values)
        results.append([value, *torch.autograd.grad(value, values)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)

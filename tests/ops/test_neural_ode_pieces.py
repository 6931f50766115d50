"""Long solves on the CPU, in pieces: the same numbers, and signals heard between them."""

import contextlib
import signal
from dataclasses import replace
from unittest import mock

import pytest
import torch

import flowkern
from flowkern.backends import unavailable
from flowkern.ops._neural_ode import pieces
from tests.cases.neural_ode import CASES, Case, evaluate

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason="no CPU kernels")
SOLVES = {
    "exact": Case(steps=8),
    "noise": Case(steps=8, trace=2, jacobian=True, kinetic=True),
    "checkpoints": Case(steps=8, checkpoint=4),
    "rows": Case(steps=8, rows=True, time="fourier"),
    "no trace": Case(steps=8, trace=None),
    "many times": Case(steps=1, times=tuple(n / 9 for n in range(10))),
    "backwards": Case(steps=8, times=(1.0, 0.3)),
}


@contextlib.contextmanager
def in_pieces(rows, steps):
    """Of so many steps of so many rows at the most; a list with an entry for each piece that was run."""
    run, done = pieces.solve, []

    def solve(call, *arguments):
        return run(lambda *some: done.append(1) or call(*some), *arguments)

    with contextlib.ExitStack() as stack:
        changed = {"solve": solve, "_work": lambda *_: 1, "WORK": rows * steps, "_ROWS": rows}
        for name, value in changed.items():
            stack.enter_context(mock.patch.object(pieces, name, value))
        yield done


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", SOLVES)
def test_numbers_of_pieces(name, whole):
    """Of some rows, and of some steps of some rows."""
    case = SOLVES[name]
    tensors, noise = case.tensors()
    want = evaluate(case, tensors, noise, "cpu")
    with in_pieces(8, case.steps * (len(case.times) - 1) if whole else 4) as done:
        got = evaluate(case, tensors, noise, "cpu")
    assert len(done) == 3 if whole else len(done) >= 6
    assert got.keys() == want.keys()
    for key, value in got.items():
        torch.testing.assert_close(value, want[key], rtol=1e-10, atol=1e-10)


def test_the_adjoint_of_pieces():
    """It begins anew at the end of each, nearer to the solution."""
    case = Case(steps=32, gradient="adjoint")
    tensors, noise = case.tensors()
    want = evaluate(case, tensors, noise, "cpu")
    with in_pieces(8, 4):
        got = evaluate(case, tensors, noise, "cpu")
    for key, value in got.items():
        torch.testing.assert_close(value, want[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 1])
def test_few_rows_of_many_steps(batch):
    case = replace(CASES["one sample"], batch=batch, steps=8)
    tensors, noise = case.tensors()
    want = evaluate(case, tensors, noise, "cpu")
    with in_pieces(8, 2):
        got = evaluate(case, tensors, noise, "cpu")
    for key, value in got.items():
        torch.testing.assert_close(value, want[key], rtol=1e-10, atol=1e-10)


class Alarm(Exception):
    pass


@pytest.mark.parametrize("backward", [False, True])
def test_a_signal_is_heard_within_a_solve(backward):
    """Before it is done; a second's solve in pieces of a few milliseconds."""

    def ring(*_):
        raise Alarm

    flow, x = flowkern.flows.CNF(4, hidden_features=(16, 16), steps=16), torch.randn(200_000, 4)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with in_pieces(2_000, 16) as done, torch.set_grad_enabled(backward):
            loss = flow().log_prob(x).sum() if backward else None
            assert len(done) == (100 if backward else 0)
            with pytest.raises(Alarm):  # noqa: PT012 (it rings in either line)
                signal.setitimer(signal.ITIMER_REAL, 0.005)
                loss.backward() if backward else flow().log_prob(x)
            assert backward or len(done) < 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Solves that fail: what is not finite, and where it stays."""

import pytest
import torch

import flowkern
from flowkern.ode import SolverWarning, Status
from flowkern.ops import FieldLayer, neural_ode
from tests.cases import neural_ode as neural_ode_cases
from tests.cases.neural_ode import Case


def test_nan_and_infinity_stay_in_their_row(backend):
    case = Case(batch=40)
    tensors, _ = case.tensors()
    with flowkern.backend(backend):
        clean = case.solve(tensors, None)
        tensors["y"][3, 1], tensors["y"][20, 0] = torch.nan, torch.inf
        dirty = case.solve(tensors, None)
    rows = [n for n in range(40) if n not in (3, 20)]
    torch.testing.assert_close(dirty.y[:, rows], clean.y[:, rows], rtol=0, atol=0)
    assert dirty.y[-1, 3].isnan().all() and not dirty.y[-1, 20].isfinite().all()


def test_exploding_field_is_not_finite(backend):
    """dy/dt = 10⁶ y over 64 Euler steps leaves the range of float32; nothing hangs or raises."""
    with flowkern.backend(backend):
        got = neural_ode(
            torch.ones(2, 1), [FieldLayer(torch.full((1, 1), 1e6))], torch.tensor([0.0, 64.0]), method="euler", steps=64
        )
    assert not got.y[-1].isfinite().any()


def test_failures_have_a_status(backend):
    """By option: samples whose state or integral is not finite at the end are told."""
    case = Case(batch=4)
    tensors, _ = case.tensors()
    with flowkern.backend(backend):
        clean = case.solve(tensors, None, on_failure="raise")
        assert torch.equal(clean.y, case.solve(tensors, None).y)
        tensors["y"][1, 2], tensors["y"][3, 0] = torch.nan, torch.inf
        with pytest.raises(flowkern.SolverError, match="rk4 did not reach .*: 2 of 4 samples: .* not finite") as failed:
            case.solve(tensors, None, on_failure="raise")
        with pytest.warns(SolverWarning, match="2 of 4 samples") as warned:
            got = case.solve(tensors, None, on_failure="warn")
    expected = [Status.OK, Status.NON_FINITE, Status.OK, Status.NON_FINITE]
    assert failed.value.status.tolist() == warned[0].message.status.tolist() == expected
    assert warned[0].filename == neural_ode_cases.__file__  # where the solve was called
    torch.testing.assert_close(got.y[:, ::2], clean.y[:, ::2])


def test_an_integral_that_is_not_finite_is_a_failure(backend):
    """‖f‖² leaves the range of float32 where f does not."""
    layers, t = [FieldLayer(torch.zeros(1, 1), torch.tensor([[1.0], [1e30]]))], torch.tensor([0.0, 1.0])
    with flowkern.backend(backend), pytest.raises(flowkern.SolverError) as failed:
        neural_ode(torch.zeros(2, 1), layers, t, kinetic=True, on_failure="raise")
    assert failed.value.status.tolist() == [Status.OK, Status.NON_FINITE]

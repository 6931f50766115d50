"""The memory and the threads that a solve takes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from flowkern.backends import unavailable
from flowkern.report.memory import peak_memory
from tests.cases.neural_ode import CASES, Case, evaluate


def test_memory_of_the_gradients():
    """One state per step, or per checkpoint, or per output time is kept for the backward."""
    for arguments, states in ((dict(), 8), (dict(checkpoint=4), 2), (dict(gradient="adjoint"), 1)):
        case = replace(CASES["one sample"], steps=8, times=(0.0, 1.0))
        tensors, noise = case.tensors()
        tensors = {k: v.requires_grad_() for k, v in tensors.items()}
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            case.solve(tensors, noise, **arguments)
        shape = tensors["y"].shape
        assert sum(t.shape[:-2].numel() for t in saved if t.dim() > 2 and t.shape[-2:] == shape) == states


@pytest.mark.parametrize("trace", (None, "exact", 1))
@pytest.mark.parametrize("time", ("concatenated", "fourier"))
def test_peak_memory_against_steps(trace, time):
    """Of forward and backward, above that of 16 steps: one state for each step more, or nothing at all."""
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    case = Case(features=8, hidden=(64, 64), batch=64, trace=trace, time=time, rows=True, times=(0.0, 1.0))
    tensors, noise = case.tensors(torch.float32)

    def peak(steps, **options):
        solve = partial(evaluate, case, tensors, noise, "cpu", steps=steps, **options)
        return peak_memory(solve)

    for gradient, states in (("discrete", 1), ("adjoint", 0)):
        peak(16, gradient=gradient)  # what is allocated once
        more = peak(1024, gradient=gradient) - peak(16, gradient=gradient)
        assert more == states * (1024 - 16) * tensors["y"].nbytes, gradient


# --- dispatcher, compilers, torch.func ----------------------------------------------------------


def test_same_bits_for_any_number_of_threads():
    case = Case(batch=500)
    tensors, noise = case.tensors(torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(evaluate(case, tensors, noise, "cpu" if unavailable("cpu") is None else "reference"))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results, rtol=0, atol=0)

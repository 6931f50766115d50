"""Fixtures for all tests: poisoned allocations, the backends that run here, stable randomness."""

import hypothesis
import pytest
import torch

from flowkern import backends

# Examples are drawn alike in every run, and slow machines are no failure.
hypothesis.settings.register_profile("flowkern", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("flowkern")

RUNNABLE = [name for name in ("reference", "cpu") if backends.unavailable(name) is None]


@pytest.fixture(params=RUNNABLE)
def backend(request):
    """Each backend that runs on CPU tensors here (triton has test files of its own)."""
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    """Both directions of an op."""
    return request.param


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """torch.empty returns NaN (integers: the largest), so that an unwritten output is noticed."""
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(previous)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

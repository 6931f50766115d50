"""Fixtures for all tests: poisoned allocations, the backends that run here, stable randomness."""

import contextlib
import os
from unittest import mock

import hypothesis
import numpy
import pytest
import torch

import flowkern
from flowkern import backends
from tests import times

# Triton decides on interpretation when its own library and our kernels are imported, so the variable is
# set around these imports, and again around each test (the backend's availability reads it), but not in
# between: the other tests see a machine without it. Triton's library comes first, before a test imports
# something (torch's compiler) that imports it.
INTERPRETED = {"TRITON_INTERPRET": "1"}
with mock.patch.dict(os.environ, INTERPRETED), contextlib.suppress(ImportError):
    import triton.language  # noqa: F401

# Examples are drawn alike in every run, and slow machines are no failure.
hypothesis.settings.register_profile("flowkern", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("flowkern")

RUNNABLE = [name for name in ("reference", "cpu") if backends.unavailable(name) is None]


@pytest.fixture(params=RUNNABLE)
def backend(request):
    """Each backend that runs on CPU tensors here (triton has test files of its own)."""
    return request.param


@pytest.fixture
def on_backend(backend):
    """Each of these in turn is the backend that is chosen."""
    with flowkern.backend(backend):
        yield


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


@pytest.fixture
def interpreted():
    """Every op runs on the Triton backend, interpreted and checked; overflows are silent, as on a GPU."""
    from tests.ops import triton_memory

    with mock.patch.dict(os.environ, INTERPRETED), flowkern.backend("triton"):
        with numpy.errstate(all="ignore"), triton_memory.checked():
            yield


@pytest.fixture
def emulated():
    """Every op runs on the CUDA kernels, emulated, as what calls itself backend "cpu"."""
    from tests.gpu.emulation import device

    with device.emulated():
        yield


def pytest_terminal_summary(terminalreporter):
    """Where the times of a whole run are collected (see times.py), they are printed with those of the tests."""
    if collected := times.collected():
        reports = [r for some in terminalreporter.stats.values() for r in some if hasattr(r, "duration")]
        lines = [f"{seconds:6.0f} s  {name}\n" for name, seconds in times.of_tests(reports)]
        terminalreporter.section("time of each part")
        terminalreporter.write("".join([collected, "tests, on all their processes:\n", *lines]))


@pytest.fixture
def programs(monkeypatch):
    """The program of each call that runs transforms of a flow in one, in a list."""
    from flowkern.programs import program

    seen = []

    def evaluate(x, called, *arguments):
        seen.append(called)
        return original(x, called, *arguments)

    original = program.evaluate
    monkeypatch.setattr(program, "evaluate", evaluate)
    return seen


@pytest.fixture(params=["cpu", "reference"])
def program_backend(request):
    """Each backend that has programs."""
    from flowkern.programs import program

    if request.param == "cpu" and "cpu" not in program.KERNELS:
        pytest.skip("no compiled kernels")
    with flowkern.backend(request.param):
        yield request.param

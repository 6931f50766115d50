"""Counts the calls of programs."""

import pytest

import flowkern
from flowkern.programs import program


@pytest.fixture
def programs(monkeypatch):
    """The program of each call, in a list."""
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
    if request.param == "cpu" and "cpu" not in program.KERNELS:
        pytest.skip("no compiled kernels")
    with flowkern.backend(request.param):
        yield request.param

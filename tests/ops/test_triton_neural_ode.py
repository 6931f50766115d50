"""The neural ODE solve's Triton kernels, interpreted: equal to the float64 reference.

Of the environment and the order of imports see test_triton.py.
"""

import os
from dataclasses import replace
from unittest import mock

import numpy
import pytest
import torch

import flowkern
from flowkern.ops.neural_ode import TABLEAUX
from flowkern.ops.neural_ode.field import ACTIVATIONS
from tests.neural_ode_cases import CASES, Case, check, evaluate

INTERPRETED = {"TRITON_INTERPRET": "1"}
with mock.patch.dict(os.environ, INTERPRETED):
    from triton.runtime.interpreter import InterpretedFunction

    from flowkern.ops.neural_ode import triton as solver
    from flowkern.ops.neural_ode import triton_kernels

# Few stages, because each is slow here.
QUICK = Case(hidden=(5, 4), method="midpoint", steps=1, times=(0.0, 0.4), batch=3)


@pytest.fixture(autouse=True)
def interpreted():
    """Every op runs on the Triton backend, interpreted; overflows are silent, as on a GPU."""
    with mock.patch.dict(os.environ, INTERPRETED), flowkern.backend("triton"):
        with numpy.errstate(all="ignore"):
            yield


def small(case):
    """The case with few steps, of which more than one are kept where it has more."""
    method = case.method if case.method in ("euler", "heun2") else "midpoint"
    steps = 2 * case.checkpoint if case.checkpoint > 1 else min(case.steps, 2 if len(case.times) < 3 else 1)
    return replace(case, method=method, steps=steps)


def test_kernels_are_interpreted():
    """If not, something imported Triton before this file did."""
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        assert isinstance(kernel, InterpretedFunction)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name):
    check(small(CASES[name]), "triton", torch.float32)


@pytest.mark.parametrize("gradient", ("discrete", "adjoint"))
@pytest.mark.parametrize("method", TABLEAUX)
def test_every_method(method, gradient):
    case = replace(QUICK, method=method, gradient=gradient, hidden=(5,), activations=("tanh",))
    check(case, "triton", torch.float64)

"""The probability path's Triton kernels, interpreted: equal to the float64 reference.

Of the environment and the order of imports see tests/conftest.py.
"""

import os
from dataclasses import replace
from unittest import mock

import pytest
import torch

from flowkern.ops import _random, probability_path
from tests.cases.probability_path import CASES, check
from tests.conftest import INTERPRETED

with mock.patch.dict(os.environ, INTERPRETED):
    from triton.runtime.interpreter import InterpretedFunction

    from flowkern.ops._probability_path import triton as path

pytestmark = pytest.mark.usefixtures("interpreted")


def test_kernels_are_interpreted():
    """If not, something imported Triton before this file did."""
    for kernel in (path._forward_kernel, path._backward_kernel):
        assert isinstance(kernel, InterpretedFunction)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name):
    for dtype in (torch.float64, torch.float32):
        check(CASES[name], "triton", dtype)


def test_more_than_one_program():
    check(replace(CASES["target"], batch=100, shape=(23,)), "triton", torch.float32)


def test_elements_counted_in_64_bits():
    """As they are where there are more than 2³¹ of them."""
    x = torch.randn(40, 30)
    want = probability_path(x, x, sigma=0.5, seed=1)
    x_t, u_t, t = torch.empty_like(x), torch.empty_like(x), torch.empty(40)
    tensors = x, x, None, None, torch.tensor(1), x_t, u_t, t
    plain = dict(KIND=0, SIGMA=0.5, COUNTERS=512, COMPUTE=path.tl.float32)
    path._forward_kernel[(1,)](1200, 30, *tensors, WIDE=True, **plain)
    assert all(map(torch.equal, (t, x_t, u_t), want))


@pytest.mark.parametrize("seed", [1, -1, -(2**63), 0x299F31D0A4093822])
def test_same_words(seed):
    zeros = torch.zeros(400, 2)
    t, _, _ = probability_path(zeros, zeros, seed=seed)
    assert torch.equal(t, _random.uniform(_random.words(400, 1, torch.tensor(seed)), torch.float32))


def test_opcheck():
    x0, x1, t, noise = CASES["target given"].tensors()
    rest = torch.tensor(1), 1, 0.3
    op = torch.ops.flowkern_triton.probability_path
    torch.library.opcheck(op, (x0, x1, None, None, *rest))
    backward = torch.ops.flowkern_triton.probability_path_backward
    torch.library.opcheck(backward, (x0, x1, True, x0, x1, t, noise, *rest))

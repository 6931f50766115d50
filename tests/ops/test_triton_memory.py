"""What triton_memory.py has to notice in a small kernel, wrong and right.

Of the environment and the order of imports see tests/conftest.py.
"""

import os
from unittest import mock

import pytest
import torch

from tests.conftest import INTERPRETED

with mock.patch.dict(os.environ, INTERPRETED):
    import triton
    import triton.language as tl

    from tests.ops import triton_memory


def kernel():
    """y = x reversed, within each program's eight elements, by way of `memory`."""

    @triton.jit
    def reverse(x, memory, y, N, MORE: tl.constexpr, BARRIER: tl.constexpr):
        place = tl.arange(0, 8)
        at = tl.program_id(0) * 8 + place
        tl.store(memory + at, tl.load(x + at, mask=at < N + MORE), mask=at < N)
        if BARRIER:
            tl.debug_barrier()
        back = tl.program_id(0) * 8 + 7 - place
        tl.store(y + at, tl.load(memory + back, mask=back < N), mask=at < N)

    return reverse


@pytest.fixture(autouse=True)
def interpreted():
    with mock.patch.dict(os.environ, INTERPRETED), triton_memory.checked():
        yield


def test_nothing_to_say():
    x, memory, y = torch.arange(16.0), torch.empty(16), torch.empty(16)
    kernel()[(2,)](x, memory, y, 16, MORE=0, BARRIER=True)
    assert torch.equal(y, x.view(2, 8).flip(1).flatten())


@pytest.mark.parametrize(
    "more, barrier, message",
    [(1, True, "reverse reads 4 bytes that no tensor"), (0, False, "reverse reads what another element writes")],
)
def test_faults(more, barrier, message):
    x, memory, y = torch.ones(15), torch.empty(16), torch.empty(16)
    with pytest.raises(Exception, match=message):
        kernel()[(2,)](x, memory, y, 15, MORE=more, BARRIER=barrier)


def test_bounds_are_those_of_a_view():
    x, memory, y = torch.ones(40), torch.empty(40), torch.empty(16)
    with pytest.raises(Exception, match="reverse writes 4 bytes that no tensor"):
        kernel()[(2,)](x, memory[3:18], y, 16, MORE=0, BARRIER=True)

"""Kernels in a forked child, whose parent's OpenMP threads are gone, and what must not start these threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowkern import backends

ROOT = Path(__file__).parents[1]
FORK = """
import multiprocessing, torch, flowkern
from nflows.flows import MaskedAutoregressiveFlow
from nflows.transforms import MaskedAffineAutoregressiveTransform
torch.set_num_threads(2)

def forked(function):
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    assert not hung and child.exitcode == 0
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK + code], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "2"} | environment,
    )  # fmt: skip


@pytest.mark.skipif(backends.unavailable("cpu") is not None, reason="the CPU kernels are not built")
def test_a_child_runs_kernels_whose_parent_ran_them_on_threads():
    result = run(
        """
layer = flowkern.accelerate(MaskedAffineAutoregressiveTransform(4, 32)).eval()
assert flowkern.explain(layer).replaced
x = torch.randn(40000, 4)
with torch.no_grad():
    wanted = layer(x)[0]

def work():
    with torch.no_grad():
        y = layer(x)[0]
        assert (y.numpy() == wanted.numpy()).all()  # torch.equal would wait for the threads
        layer.inverse(wanted)

forked(work)
"""
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("look", ["flowkern.explain(flow)", "flowkern.accelerate(flow)"])
def test_looking_at_a_model_starts_no_threads(look):
    """A child of a process that has no threads may run in parallel itself."""
    result = run(
        f"""
flow = MaskedAutoregressiveFlow(4, 32, 3, 2).eval()
x = torch.randn(40000, 4)
{look}
assert torch.get_num_threads() == 2
flowkern.restore(flow)
forked(lambda: flow.log_prob(x))
"""
    )
    assert result.returncode == 0, result.stderr

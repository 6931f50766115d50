"""What must not start the threads of OpenMP, which a forked child does not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORK = """
import multiprocessing, torch, flowkern
from nflows.flows import MaskedAutoregressiveFlow
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

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


SAMPLES = """
import torch
from torch.utils.data import DataLoader, IterableDataset

class Samples(IterableDataset):
    def __init__(self, flow):
        self.flow = flow

    def __iter__(self):
        return iter(self.flow.sample(3000).split(1000))

flow = MaskedAutoregressiveFlow(4, 32, 3, 2).eval().requires_grad_(False)
flowkern.accelerate(flow)
"""


@pytest.mark.skipif(backends.unavailable("cpu") is not None, reason="the CPU kernels are not built")
def test_workers_of_a_data_loader_sample_from_a_flow():
    """Each with random numbers of its own."""
    result = run(
        SAMPLES
        + """
flow.log_prob(torch.randn(40000, 4))  # on threads
def stop(*_):
    raise SystemExit("the workers hang")
import signal
signal.signal(signal.SIGALRM, stop)
signal.alarm(60)
batches = list(DataLoader(Samples(flow), batch_size=None, num_workers=2, multiprocessing_context="fork"))
assert len(batches) == 6 and len({float(batch.sum()) for batch in batches}) == 6
"""
    )
    assert result.returncode == 0, result.stderr


def test_processes_of_joblib_share_the_cores():
    result = run(
        """
import joblib
flow = flowkern.accelerate(MaskedAutoregressiveFlow(4, 32, 3, 2).eval().requires_grad_(False))
x = torch.randn(2000, 4)

def work(rows):
    import os, torch
    return torch.get_num_threads() * 2 <= max(os.cpu_count(), 2), flow.log_prob(rows)

share, parts = zip(*joblib.Parallel(n_jobs=2, timeout=60)(joblib.delayed(work)(rows) for rows in x.split(1000)))
assert all(share)
torch.testing.assert_close(torch.cat(parts), flow.log_prob(x))
"""
    )
    assert result.returncode == 0, result.stderr

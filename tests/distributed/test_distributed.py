"""Training, checkpoints and samples on two processes, with the numbers of one."""

import multiprocessing

import pytest
import torch

from tests.distributed import training


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of both processes, which are started once: case → traceback."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=training.work, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.timeout(900)  # the first one waits for all, and two processes import everything
@pytest.mark.parametrize("case", training.CASES)
def test_two_processes_do_what_one_does(case, results):
    for rank in range(2):
        assert not results[rank][case], results[rank][case]

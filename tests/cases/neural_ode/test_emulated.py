"""The solve's CUDA kernels, emulated: tiles, blocks and most layers."""

from dataclasses import replace

import pytest
import torch

import flowkern
from flowkern.ops._neural_ode import native
from tests.cases.neural_ode import check
from tests.cases.neural_ode.emulated import CASES, SAME_BITS
from tests.gpu.emulation import library

# The first test that runs builds the library.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("emulated")]


@pytest.mark.parametrize("name", SAME_BITS)
def test_a_solution_is_the_same_on_one_block(name):
    """Gradients are not: blocks add them up."""
    case, found = SAME_BITS[name], []
    tensors, noise = case.tensors(torch.float32)
    for order in ({}, {"most_blocks": 1}):
        with torch.no_grad(), library.configured(**order), flowkern.backend("cpu"):
            found.append(case.solve(tensors, noise).y)
    assert torch.equal(*found)


def test_a_path_does_not_depend_on_the_other_samples():
    """Nor on the size of the tile: 8 samples, or 4."""
    tensors, noise = CASES["rows-1030"].tensors(torch.float32)
    few = tensors | {name: tensors[name][:6] for name in ("y", "bias0")}
    with torch.no_grad(), flowkern.backend("cpu"):
        both = [CASES["rows-1030"].solve(t, noise).y for t in (tensors, few)]
    assert torch.equal(both[0][:, :6], both[1])


def test_solve_refuses_more_layers_than_a_kernel_takes():
    """Where the kernels' table ends is said on both sides: see tests/ops/test_neural_ode.py."""
    for layers in (native.MOST_CUDA_LAYERS, native.MOST_CUDA_LAYERS + 1):
        hidden = (2,) * (layers - 1)
        case = replace(CASES["one sample"], hidden=hidden, activations=("tanh",) * len(hidden), trace=None)
        if layers == native.MOST_CUDA_LAYERS:
            check(case, "cpu", torch.float64)
            continue
        with pytest.raises(RuntimeError, match="layers: at most 24 on CUDA, got 25"):
            check(case, "cpu", torch.float64)

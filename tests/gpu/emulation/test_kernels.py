"""The CUDA kernels, emulated on the CPU: equal to the reference, whatever the order of threads."""

import itertools

import pytest
import torch

from tests import cases, options
from tests.gpu.emulation import build, library

MODULES = cases.modules("emulated")
CASES = cases.labelled({op: module.CASES for op, module in MODULES.items()})
SAME_BITS = {
    name: (case, module.MOST_BLOCKS)
    for op, module in MODULES.items()
    for name, case in cases.labelled({op: module.SAME_BITS}).items()
}
# The first test that runs builds the library.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("emulated")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name, dtype):
    for directed in cases.directions(CASES[name]):
        cases.of(CASES[name]).check(CASES[name], "cpu", dtype, **directed)


@pytest.mark.parametrize("op", MODULES)
def test_many_pairs_of_options_agree_with_the_reference(op):
    """The first choices, which have most pairs."""
    space = options.smaller(options.SPACES[op], 17)
    for choice in itertools.islice(options.pairs(space), 8):
        options.call(space, choice).check("cpu")


def test_every_kernel_runs():
    """All instances of all kernels, by some of the cases of the tests above."""
    for case in itertools.chain.from_iterable(module.EVERY for module in MODULES.values()):
        for dtype, directed in itertools.product((torch.float64, torch.float32), cases.directions(case)):
            cases.of(case).results(case, "cpu", dtype, **directed)
    assert library.launched() == library.kernels() != set()
    assert {source.parent.name for source in build.sources("cuda.cu")} == {*MODULES}


@pytest.mark.parametrize("name", SAME_BITS)
def test_same_bits_in_every_order(name):
    """Threads run forward, reversed and at random; blocks work on one or on several segments."""
    case, most_blocks = SAME_BITS[name]
    orders = [{"schedule": library.REVERSED}, *({"schedule": library.RANDOM, "seed": seed} for seed in (1, 2))]
    orders += [{"most_blocks": most_blocks}] if most_blocks else []
    for directed in cases.directions(case):
        first = [*cases.of(case).results(case, "cpu", torch.float32, **directed)]
        for order in orders:
            with library.configured(**order):
                again = cases.of(case).results(case, "cpu", torch.float32, **directed)
            assert all(map(torch.equal, first, again)), (directed, order)

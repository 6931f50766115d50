"""Every CUDA kernel compiles for every architecture, and keeps its values in registers."""

import re

import pytest

from tests.compiled import cuda_kernels

# The most bytes of stack; nothing may be spilled. Kernels with any number of bins (K = 0) keep
# three arrays of 256 bins on the stack, by design.
STACK = {"float": 3 * 256 * 4 + 16, "double": 3 * 256 * 8 + 16}


def most_stack(source, kernel):
    any_bins = re.search(r"<(\w+), 0,", kernel) if source.startswith("rational") else None
    return STACK[any_bins[1]] if any_bins else 0


@pytest.fixture(scope="module")
def tables():
    return cuda_kernels.compile_all()


@pytest.mark.parametrize("architecture", cuda_kernels.ARCHITECTURES)
@pytest.mark.parametrize("source", [source.stem for source in cuda_kernels.SOURCES])
@pytest.mark.timeout(900)
def test_kernels_stay_in_registers(tables, source, architecture):
    table = tables[source, architecture]
    assert table
    beyond = {
        kernel: used
        for kernel, used in table.items()
        if used.spilled or used.stack > most_stack(source, kernel)
    }
    assert not beyond

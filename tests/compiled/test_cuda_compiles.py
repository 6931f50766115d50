"""Every CUDA kernel compiles for every architecture, and keeps its values in registers."""

import re

import pytest

from tests.compiled import cuda_kernels

# The most bytes of stack and of spills. Kernels with any number of bins (K = 0) keep their bins on
# the stack by design: three arrays of 256 and what the compiler adds.
REGISTERS_ONLY = {"stack": 0, "spilled": 0}
LIMITS = {
    "spline, any number of bins, float": {"stack": 3200, "spilled": 64},
    "spline, any number of bins, double": {"stack": 6400, "spilled": 192},
}


def limits(source, kernel):
    any_bins = source.startswith("rational_quadratic_spline") and re.search(r"<(\w+), 0,", kernel)
    return LIMITS[f"spline, any number of bins, {any_bins[1]}"] if any_bins else REGISTERS_ONLY


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
        if any(getattr(used, what) > most for what, most in limits(source, kernel).items())
    }
    assert not beyond

"""Every CUDA kernel compiles for every architecture, and keeps its values in registers."""

import pytest

from tests.compiled import cuda_kernels


@pytest.fixture(scope="module")
def tables():
    return cuda_kernels.compile_all()


@pytest.mark.parametrize("architecture", cuda_kernels.ARCHITECTURES)
@pytest.mark.parametrize("source", [source.stem for source in cuda_kernels.SOURCES])
@pytest.mark.timeout(900)
def test_kernels_stay_in_registers(tables, source, architecture):
    """No spills, and no stack for arrays either."""
    table = tables[source, architecture]
    assert table
    beyond = {kernel: used for kernel, used in table.items() if used.spilled or used.stack}
    assert not beyond

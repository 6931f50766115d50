"""The affine coupling's CUDA kernels, emulated, at its ends."""

import pytest

from tests.cases import coupling
from tests.cases.affine_coupling import CASES
from tests.cases.affine_coupling.emulated import OPS

# The first test that runs builds the library.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("emulated")]


def test_gradients_are_finite_wherever_they_fit():
    for inverse in (False, True):
        coupling.check_gradients_fit(CASES["tanh"], "cpu", inverse)


def test_index_out_of_range():
    coupling.check_index_out_of_range("affine_coupling", OPS, (False, False, 1, 0.0, 0.0, 1.0, 1.0))

"""The spline's CUDA kernels, emulated, where nothing has a value."""

import pytest
import torch

from flowkern.ops import SoftplusKnots
from tests.cases import coupling
from tests.cases.rational_quadratic_spline import CASES
from tests.cases.rational_quadratic_spline.emulated import OPS

# The first test that runs builds the library.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("emulated")]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_bound_that_is_none_gives_nan(bad):
    x, params = torch.zeros(5, 3), torch.zeros(5, 2, 23)
    index, bound = torch.tensor([2, 0]), torch.tensor([1.0, bad])
    op = torch.ops.flowkern.rational_quadratic_spline
    for inverse in (False, True):
        y, logabsdet = op(x, params, index, bound, inverse, 0, 0.0, 1.0, 0.0, 1.0, *SoftplusKnots().numbers())
        assert torch.equal(y.isnan(), torch.tensor([[True, False, False]]).expand(5, 3))
        assert logabsdet.isnan().all()


@pytest.mark.parametrize("name", ["k8", "softclip"])
def test_gradients_are_finite_wherever_they_fit(name):
    for inverse in (False, True):
        coupling.check_gradients_fit(CASES[name], "cpu", inverse)


def test_index_out_of_range():
    coupling.check_index_out_of_range(
        "rational_quadratic_spline", OPS, (None, False, 0, -3.0, 3.0, -3.0, 3.0, *SoftplusKnots().numbers())
    )

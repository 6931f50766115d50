"""The one table of tolerances, by dtype and quantity, and the comparisons that use it.

Errors against the float64 reference are counted in units, element by element. One unit is what the
reference itself does in the kernel's precision: its largest deviation from float64 when every input
moves by one rounding, plus one rounding of the result. So an ill-conditioned element (a narrow bin,
a steep slope) may be as wrong as the plain formulas make it and no more, and one table serves every
shape and spread.
"""

import contextlib
import math
from typing import NamedTuple

import torch


class Units(NamedTuple):
    """The most units by which each quantity of a `Result` may be wrong."""

    y: float
    logabsdet: float
    grad_x: float
    grad_params: float


# Most units for all elements but 1 %. Measured at spread 6 in float32: 99 % are within 5.8 units on
# cpu and 4.3 in the reference, the median element within 0.7.
MOST = 16

# op: {dtype of the quantity: Units for every element}. A unit is drawn from 8 samples, so that the
# worst of 10⁵ elements is far out. Measured worst at spread 6, 20 000 rows of 5 features, float32:
# spline: y 2.8, logabsdet 5.2, grad_x 59, grad_params 59 on cpu, and 2.2, 16.6, 26, 58 in the
# reference; affine: 2.5, 1.6, 3.2, 3.1 on cpu and 2.4, 1.2, 4.0, 3.4 in the reference.
# Float64 is measured at spread 1 (spline on cpu: 2.5, 5.7, 3.2, 7.2), where the reference's own
# rounding, for which there is no better evaluation at hand, is of the size of the kernel's.
TABLE = {
    "affine_coupling": {
        torch.float64: Units(4, 4, 8, 8),
        torch.float32: Units(4, 4, 8, 8),
        torch.float16: Units(1, 1, 1, 1),
        torch.bfloat16: Units(1, 1, 1, 1),
    },
    "rational_quadratic_spline": {
        torch.float64: Units(8, 16, 16, 16),
        torch.float32: Units(8, 32, 128, 128),
        torch.float16: Units(1, 1, 2, 2),
        torch.bfloat16: Units(1, 1, 2, 2),
    },
    # The unit of a spline's y has one rounding of its interval besides: with parameters that are exactly 0
    # nothing that moves shows how positions near 0 round there.
    # Measured worst over all cases on cpu: 1.5, 2.0, 2.3 and 16.2. The last is in float64, through
    # the inverse of 40 features, where the reference in float64 is no better itself; else 7.6.
    "masked_autoregressive": {
        torch.float64: Units(4, 4, 8, 32),
        torch.float32: Units(4, 4, 8, 16),
    },
}

# Roundings of f(x) by which f(f⁻¹(y)) may miss y in float32. Measured on 50 000 rows at spread 6:
# at most 5.3 (reference) and 10.7 (cpu, 64 bins: their knots are a sum of 64 terms).
RESIDUAL = 16

# Most units by which any result of a neural ODE solve may be wrong. One unit is the largest error of the
# reference in that precision, also when every tensor moves by one rounding, plus one rounding of the largest value.
# Measured worst over all cases: 7.1 in float64 and 0.73 in float32 on cpu, 12.4 and 2.3 on cuda, emulated.
NEURAL_ODE = {torch.float64: 16, torch.float32: 4}

# Most units by which any result of a flow's program may be wrong. One unit is the largest error of the
# reference in that precision, also when every tensor moves by one rounding, plus one rounding of the
# largest value. Measured worst over all cases and 300 random programs on cpu: 8.9 in float64, 2.1 in float32.
FLOW_PROGRAM = {torch.float64: 16, torch.float32: 8}


_ratios = []  # lists that take error ÷ allowed of what is compared


@contextlib.contextmanager
def recorded():
    """A list that holds error ÷ allowed of all that is compared inside."""
    _ratios.append(found := [])
    try:
        yield found
    finally:
        _ratios.remove(found)


def assert_within(units, most, label):
    """Raise AssertionError unless so many units are allowed."""
    for found in _ratios:
        found.append(units / most)
    assert units <= most, f"{label} is wrong by {units:.3g} units, at most {most}"


def assert_result(got, want, roundings, op, label):
    """Each quantity of the `Result` got within TABLE[op] and MOST of want."""
    for quantity, *values in zip(got._fields, got, want, roundings):
        units = errors(*values, by_row=quantity != "logabsdet").flatten().sort().values
        worst = getattr(TABLE[op][values[0].dtype], quantity)
        for most, at in ((worst, len(units)), (MOST, len(units) - math.ceil(len(units) / 100))):
            assert_within(units[at - 1].item() if at > 0 else 0.0, most, f"{label}: {quantity}")


def errors(got, want, rounding, by_row):
    """The error of each element of got in units; equal infinities and two NaNs are no error.

    by_row: the unit is that of the largest element of the row (all features of one sample, all
    parameters of one feature), because kernels sum over the row.
    """
    eps = torch.finfo(got.dtype).eps
    want = want.to(got.dtype).double()
    same = (got == want) | (got.isnan() & want.isnan())
    unit = eps * (1 + want.nan_to_num(0, 0, 0).abs()) + rounding
    if by_row and unit.numel() > 0:
        unit = unit.amax(-1, keepdim=True)
    units = ((got.double() - want).abs() / unit).nan_to_num(torch.inf)
    return torch.where(same, 0.0, units)


def assert_same(got, want, label, rtol=1e-9, atol=1e-9):
    """Each quantity of one float64 `Result` equal to another, up to the order of operations."""
    for quantity, *values in zip(got._fields, got, want):
        torch.testing.assert_close(*values, rtol=rtol, atol=atol, msg=lambda m: f"{label}: {quantity}: {m}")

"""What a tolerance is, and the comparisons that use it; an op's own are TOLERANCES in tests/cases.

Errors against the float64 reference are counted in units, element by element. One unit is what the
reference itself does in the kernel's precision: its largest deviation from float64 when every input
moves by one rounding, plus one rounding of the result. So an ill-conditioned element (a narrow bin,
a steep slope) may be as wrong as the plain formulas make it and no more, and one table of an op
serves every shape and spread.
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

# Roundings of f(x) by which f(f⁻¹(y)) may miss y in float32. Measured on 50 000 rows at spread 6:
# at most 5.3 (reference) and 10.7 (cpu, 64 bins: their knots are a sum of 64 terms).
RESIDUAL = 16


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


def assert_result(got, want, roundings, table, label):
    """Each quantity of the `Result` got within table, {dtype of the quantity: Units for every element}, and MOST of
    want."""
    for quantity, *values in zip(got._fields, got, want, roundings):
        units = errors(*values, by_row=quantity != "logabsdet").flatten().sort().values
        worst = getattr(table[values[0].dtype], quantity)
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


def known(lost):
    """Where a result is known to a rounding: where the reference, in that precision, does not overflow."""
    return lost.isfinite()


def in_largest(got, want, lost):
    """The largest error of a tensor in units, of which one is a rounding of its largest value and the most that the
    reference lost in any element."""
    eps = torch.finfo(got.dtype).eps
    got, want, lost = (t[known(lost)].double() for t in (got, want, lost))
    if len(got) == 0:
        return 0.0
    return ((got - want).abs().max() / (eps * (1 + want.abs().max()) + lost.max())).item()


def assert_same(got, want, label, rtol=1e-9, atol=1e-9):
    """Each quantity of one float64 `Result` equal to another, up to the order of operations."""
    for quantity, *values in zip(got._fields, got, want):
        torch.testing.assert_close(*values, rtol=rtol, atol=atol, msg=lambda m: f"{label}: {quantity}: {m}")

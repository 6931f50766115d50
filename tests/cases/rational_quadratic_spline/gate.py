"""Checks of the op on a GPU, see tests/gpu/gate."""

import functools

from tests.cases import coupling_gate

GROUPS = coupling_gate.groups("rational_quadratic_spline")
smoke = functools.partial(coupling_gate.smoke, "rational_quadratic_spline")

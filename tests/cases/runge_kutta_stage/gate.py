"""Checks of the op on a GPU, see tests/gpu/gate."""

import itertools

from flowkern.ops import runge_kutta_error, runge_kutta_stage
from tests.cases.runge_kutta_stage import CASES, Case
from tests.gpu.gate import checks, large
from tests.gpu.gate.large import Call


def _cases(gate):
    named = [*CASES.values()]
    shapes = itertools.product(((100003, 7), (1025, 3), (3, 70001)), (False, True))
    odd = [Case(shape, 7, by_row) for shape, by_row in shapes]
    return checks.compared(named[:5] if gate.dry_run else [*named, *odd], gate)


def _stage(y, k, weights):
    return runge_kutta_stage(y, [k], weights), runge_kutta_error(y, k, [k], weights, 0.1, 0.01)


CALLS = (Call(_stage, ((3,), (3,), (1,)), 4),)
GROUPS = {"cases": _cases, "large": lambda gate: large.checks("runge_kutta_stage", CALLS, gate)}


def smoke(gate):
    return checks.smoke(CASES["(7, 3)"], Case((100003, 7), 7), gate)

"""Checks of the op on a GPU, see tests/gpu/gate."""

from dataclasses import replace

from flowkern.ops import probability_path
from tests.cases.probability_path import CASES
from tests.gpu.gate import checks, large
from tests.gpu.gate.large import Call


def _cases(gate):
    named = [*CASES.values()]
    large = [replace(case, batch=100003) for case in named[:16]]
    return checks.compared(named[:3] if gate.dry_run else [*named, *large], gate)


def _path(x0, x1, noise, t):
    return probability_path(x0, x1, t.sigmoid(), path="variance_preserving", sigma=0.3, noise=noise)[1:]


CALLS = (Call(_path, ((64,), (64,), (64,), ()), 8, 2),)
GROUPS = {"cases": _cases, "large": lambda gate: large.checks("probability_path", CALLS, gate)}


def smoke(gate):
    case = CASES["conditional"]
    return checks.smoke(case, replace(case, batch=100003), gate)

"""Checks of the op on a GPU, see tests/gpu/gate."""

import itertools
from dataclasses import replace

from tests.cases.neural_ode import CASES, Case
from tests.gpu.gate import checks, large
from tests.gpu.gate.large import Call


def _cases(gate):
    """About the edges of tiles and blocks too."""
    typical, deep = CASES["exact two hidden"], CASES["exact three hidden"]
    if gate.dry_run:
        short = {"batch": 3, "steps": 1, "times": (0.0, 0.3)}
        return checks.compared([replace(case, **short) for case in (typical, CASES["adjoint noise"])], gate)
    # Sums over many samples lose more than the few roundings that are allowed.
    sizes = [*itertools.product((1, 63, 1023), ((1,), (64, 64), (256, 256))), (4101, (1,)), (4101, (5, 3))]
    odd = [replace(typical, batch=n, hidden=h, activations=("silu",) * len(h)) for n, h in sizes]
    wide = replace(typical, features=1, hidden=(9000,), activations=("tanh",), steps=1)
    return checks.compared([*CASES.values(), *odd, replace(deep, hidden=(33, 128, 65), batch=257), wide], gate)


def _solve(y):
    case = Case(64, (1,), ("tanh",), batch=1, method="euler", steps=1, time=None, times=(0.0, 0.3))
    tensors, _ = case.tensors(y.dtype, device=y.device)
    solution = case.solve(tensors | {"y": y}, None)
    return solution.y[-1], solution.logabsdet[-1]


CALLS = (Call(_solve, ((64,),), 9, 1),)
GROUPS = {"cases": _cases, "large": lambda gate: large.checks("neural_ode", CALLS, gate)}


def smoke(gate):
    odd = replace(CASES["exact two hidden"], **({"batch": 3, "steps": 1, "times": (0.0, 0.3)} if gate.dry_run else {}))
    return checks.smoke(odd, replace(odd, hidden=(64, 64), batch=1023), gate)

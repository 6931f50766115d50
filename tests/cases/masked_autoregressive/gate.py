"""Checks of the op on a GPU, see tests/gpu/gate."""

from dataclasses import replace

from tests.cases.masked_autoregressive import CASES, Case
from tests.gpu.gate import checks, large
from tests.gpu.gate.large import Call


def _cases(gate):
    """Programs and blocks take several tiles where rows are many."""
    chosen = [CASES["relu"], CASES["k8"]] if gate.dry_run else list(CASES.values())
    for rows in (33,) if gate.dry_run else (31, 33, 4099, 40001):
        chosen.append(replace(CASES["everything"], batch=rows))
    return checks.compared(chosen, gate)


def _masked(inverse):
    case = Case("large", 32, (2,), batch=1)
    return lambda x: case(x, case.tensors(x.dtype, device=x.device)[1], inverse)


CALLS = (Call(_masked(False), ((32,),), 5, 1), Call(_masked(True), ((32,),), 5, 1))
GROUPS = {"cases": _cases, "large": lambda gate: large.checks("masked_autoregressive", CALLS, gate)}


def smoke(gate):
    large = Case("large", 64, (256, 256), batch=4096)
    return checks.smoke(CASES["relu"], large, gate)

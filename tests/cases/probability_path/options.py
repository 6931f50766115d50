"""Every option of the op, see tests/options.py."""

import inspect

from flowkern import ops
from flowkern.ops._probability_path import PATHS
from tests.cases.probability_path import Case
from tests.cases.space import BOTH, COMMON, Space


def _case(choice):
    return Case(choice["path"], choice["sigma"], choice["batch"], choice["shape"], choice["given"])


SPACE = Space(
    {**COMMON, "path": tuple(PATHS), "sigma": (0.0, 0.3), "given": BOTH, "shape": ((1,), (5,), (17,), (3, 4))},
    _case,
)
ARGUMENTS = {*inspect.signature(ops.probability_path).parameters}
DATA = {"x0", "x1", "t", "noise", "seed"}  # what has no option of its own, or is fixed by another option

"""Every option of the op, see tests/options.py."""

import inspect

from flowkern import ops
from tests.cases.runge_kutta_stage import Case
from tests.cases.space import BOTH, COMMON, Space


def _case(choice):
    return Case(choice["shape"], choice["stages"], choice["by_row"] and choice["shape"] != ())


SPACE = Space(
    {
        "dtype": COMMON["dtype"],
        "shape": ((), (1,), (7, 3), (5, 17), (3, 2, 16), (0, 3)),
        "stages": tuple(range(1, 9)),
        "by_row": BOTH,
    },
    _case,
)
ARGUMENTS = {*inspect.signature(ops.runge_kutta_stage).parameters}
DATA = {"y", "k", "weights"}  # what has no option of its own, or is fixed by another option

"""Every option of the op, see tests/options.py."""

import inspect

from flowkern import ops
from flowkern.ops._affine_coupling import SCALE_MAPS
from tests.cases import coupling_options
from tests.cases.space import BOTH, Space


def _case(choice):
    options = {name: choice[name] for name in ("scale_map", "scale_first")}
    return coupling_options.case("affine_coupling", choice, options=options)


SPACE = Space({**coupling_options.COUPLING, "scale_map": tuple(SCALE_MAPS), "scale_first": BOTH}, _case)
ARGUMENTS = {*inspect.signature(ops.affine_coupling).parameters}
DATA = {"x", "params", "index", "mask"}  # what has no option of its own, or is fixed by another option

"""Every option of the op, see tests/options.py."""

import inspect

from flowkern import ops
from flowkern.ops._activation import NAMES
from flowkern.ops._neural_ode import METHODS
from tests.cases.neural_ode import Case
from tests.cases.space import BOTH, COMMON, Space

_OPTIONS = {
    **COMMON,
    "features": (1, 3, 9),
    "hidden": ((), (5,), (4, 9), (3, 17, 4)),
    "activation": NAMES,
    "method": tuple(METHODS),
    "steps": ((1, 1), (4, 1), (4, 2)),
    "times": ((0.0, 0.4, 1.0), (1.0, 0.3, 0.3), (0.5,)),
    "gradient": ("discrete", "adjoint"),
    "trace": (None, "exact", 1, 2),
    "time": (None, "concatenated", "fourier"),
    **dict.fromkeys(("kinetic", "jacobian", "rows", "bias"), BOTH),
}


def _case(choice):
    chosen = {name: choice[name] for name in Case.__dataclass_fields__ if name in choice}
    steps, checkpoint = choice["steps"]
    activations = (choice["activation"],) * len(choice["hidden"])
    jacobian = choice["jacobian"] and choice["trace"] is not None
    chosen |= {"steps": steps, "checkpoint": checkpoint, "activations": activations, "jacobian": jacobian}
    return Case(**chosen)


SPACE = Space(_OPTIONS, _case)
ARGUMENTS = {*inspect.signature(ops.neural_ode).parameters}
DATA = {"y", "layers", "t", "checkpoint", "on_failure"}  # what has no option of its own, or is fixed by another option

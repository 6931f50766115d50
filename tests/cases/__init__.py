"""Named calls of the ops: shapes, options, memory layouts. All tests of kernels share them.

A folder for each op, from which everything that goes through all ops takes what it needs:

    __init__.py      LABEL: before the names of its cases. CASES: {name: case}.
                     check(case, backend, dtype, seed, device): raise AssertionError unless it agrees with the float64
                     reference; results(…): all that it computes, as tensors. Both take inverse=… where an op has one.
    faults.py        FAULTS that are planted in its kernels, see tests/gpu/sanitizers.
"""

import importlib
from pathlib import Path

OPS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")))


def modules(name=None):
    """{op: module} of the modules of that name in the ops' folders, or of the folders themselves."""
    ops = OPS if name is None else [op for op in OPS if Path(__file__).with_name(op).joinpath(f"{name}.py").exists()]
    return {op: importlib.import_module(".".join(filter(None, ("tests.cases", op, name)))) for op in ops}

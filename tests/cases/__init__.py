"""Named calls of the ops: shapes, options, memory layouts. All tests of kernels share them.

A folder for each op, from which everything that goes through all ops takes what it needs:

    __init__.py      LABEL: before the names of its cases. CASES: {name: case}; EDGES: more
                     of them, about the edges of blocks. TOLERANCES: see tests/tolerances.py.
                     check(case, backend, dtype, seed, device): raise AssertionError unless it agrees with the float64
                     reference; results(…): all that it computes, as tensors. Both take inverse=… where an op has one.
    calls.py         the op as functions of one tensor, whose gradients are batched, or whose shapes are dynamic.
    options.py       SPACE of all its options, see tests/options.py.
    emulated.py      OPS: what the CUDA kernels do in the emulation (emulated.cpp), and cases for it.
    launches.h       a launch of each of its CUDA kernels; triton_launches.py: the same of Triton.
    gate.py          GROUPS of checks on a GPU, and smoke, the first few of each direction; see tests/gpu/gate.
    faults.py        FAULTS that are planted in its kernels, see tests/gpu/sanitizers.
    imports.py       MODULES: what each of its modules may import, see tests/test_imports.py.
"""

import importlib
import inspect
import sys
from pathlib import Path

OPS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")))


def modules(name=None):
    """{op: module} of the modules of that name in the ops' folders, or of the folders themselves."""
    ops = OPS if name is None else [op for op in OPS if Path(__file__).with_name(op).joinpath(f"{name}.py").exists()]
    return {op: importlib.import_module(".".join(filter(None, ("tests.cases", op, name)))) for op in ops}


def labelled(cases):
    """{op: {name: case}} as one {"label-name": case}."""
    found = modules()
    return {f"{found[op].LABEL}-{name}": case for op, named in cases.items() for name, case in named.items()}


def of(case):
    """The module that checks it."""
    return sys.modules[type(case).__module__]


def directions(case):
    """What check and results take besides: both directions where there are two."""
    both = "inverse" in inspect.signature(of(case).check).parameters
    return ({"inverse": False}, {"inverse": True}) if both else ({},)


def kernels(op):
    """The backends that have kernels of it."""
    return importlib.import_module(f"flowkern.ops._{op}.native").KERNELS

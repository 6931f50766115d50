"""What only the oldest supported torch, built for CUDA, can show; run by `make test-oldest`.

`make test` does not collect this file: it needs two environments. OTHER_PYTHON and OTHER_TREE are the
interpreter and the sources of the other one, with its libraries built.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

import flowkern
from flowkern import _library
from tests import cases
from tests.ops.test_dispatch import _arguments

HERE = Path(__file__).parents[2]
OTHER = os.environ.get("OTHER_PYTHON", ""), Path(os.environ.get("OTHER_TREE", ""))
# Every named case of every op, by the CPU kernels, against the reference.
CHECK = """
import torch
from flowkern import _library
from tests import cases
assert _library._REASONS["cpu"] is None, _library._REASONS
for named in cases.NAMED.values():
    for case in list(named.values())[:6]:
        cases.check(case, "cpu", torch.float32)
print(torch.__version__)
"""


def test_versions():
    assert torch.__version__.split("+")[0] == "2.11.0" and torch.version.cuda
    assert triton.__version__ == "3.6.0"


@pytest.mark.parametrize("direction", ["", "_backward"])
@pytest.mark.parametrize("op", cases.NAMED)
def test_both_libraries_hold_every_op(op, direction):
    assert _library._REASONS == {"cpu": None, "cuda": None}
    assert _library.compiled(op + direction) == ("cpu", "cuda")


@pytest.mark.parametrize("op", cases.NAMED)
def test_cuda_without_a_driver(op):
    """An error that says so, also from the kernel's own side of the dispatcher, and no crash."""
    with pytest.raises(RuntimeError, match="'cuda' cannot run here: .* finds no GPU or driver"):
        with flowkern.backend("cuda"):
            cases.TYPICAL[op](*cases.TYPICAL[op].tensors())
    with pytest.raises(RuntimeError, match="NVIDIA driver"):
        cases.TYPICAL[op](*cases.TYPICAL[op].tensors(device="cuda"))
    kernel = getattr(torch.ops.flowkern, op).default
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError):
        kernel.redispatch(keys, *_arguments(cases.TYPICAL[op]))


def test_cpu_library_of_the_other_torch_loads_here(tmp_path):
    assert "2.11.0" in with_library(tmp_path, sys.executable, OTHER[1])


def test_cpu_library_of_this_torch_loads_in_the_other(tmp_path):
    assert torch.__version__ not in with_library(tmp_path, OTHER[0], HERE)


def with_library(folder, python, tree):
    """Run CHECK by `python` on a copy of these sources with the CPU library that `tree` holds."""
    for name in ("flowkern", "tests"):
        shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = "flowkern/libflowkern_cpu.so"
    shutil.copy(tree / library, folder / library)
    done = subprocess.run([python, "-c", CHECK], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

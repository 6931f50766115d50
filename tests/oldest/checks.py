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
from tests.cases import coupling
from tests.gpu.emulation import device

HERE = Path(__file__).parents[2]
OTHER = os.environ.get("OTHER_PYTHON", ""), Path(os.environ.get("OTHER_TREE", ""))
_IGNORED = shutil.ignore_patterns("*.so", "__pycache__")
# Some named cases of every op, by the CPU kernels, against the reference.
CHECK = """
import torch
from flowkern import _library
from tests.cases import coupling
assert _library._REASONS["cpu"] is None, _library._REASONS
for named in coupling.NAMED.values():
    for case in list(named.values())[:6]:
        coupling.check(case, "cpu", torch.float32)
print(torch.__version__)
"""


def test_versions():
    assert torch.__version__.split("+")[0] == "2.11.0" and torch.version.cuda
    assert triton.__version__ == "3.6.0"


# The backward of the masked transform is another one on either device, see below.
@pytest.mark.parametrize("op", [op for op in device.OPS if op != "masked_autoregressive_backward"])
def test_both_libraries_hold_every_op(op):
    assert _library._REASONS == {"cpu": None, "cuda": None}
    assert _library.compiled(op) == ("cpu", "cuda")


def test_masked_autoregressive_is_in_both_libraries():
    """The backward of either device: that of the CPU sums gradients, that of a GPU leaves a tape."""
    assert _library.compiled("masked_autoregressive") == ("cpu", "cuda")
    assert _library.compiled("masked_autoregressive_gradients") == ("cpu",)
    assert _library.compiled("masked_autoregressive_backward") == ("cuda",)


@pytest.mark.parametrize("op", coupling.NAMED)
def test_cuda_without_a_driver(op):
    """An error that says so, also from the kernel's own side of the dispatcher, and no crash."""
    with pytest.raises(RuntimeError, match="'cuda' cannot run here: .* finds no GPU or driver"):
        with flowkern.backend("cuda"):
            coupling.TYPICAL[op](*coupling.TYPICAL[op].tensors())
    with pytest.raises(RuntimeError, match="NVIDIA driver"):
        coupling.TYPICAL[op](*coupling.TYPICAL[op].tensors(device="cuda"))
    kernel = getattr(torch.ops.flowkern, op).default
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match="device_guard.* failed"):
        kernel.redispatch(keys, *coupling.raw_arguments(coupling.TYPICAL[op]))


def test_cpu_library_of_the_other_torch_loads_here(tmp_path):
    assert "2.11.0" in with_library(tmp_path, sys.executable, OTHER[1])


def test_cpu_library_of_this_torch_loads_in_the_other(tmp_path):
    assert torch.__version__ not in with_library(tmp_path, OTHER[0], HERE)


@pytest.mark.timeout(1200)
def test_cuda_library_of_the_other_torch_loads_here(tmp_path):
    """Though the other torch has no CUDA. (For the same reason, ours cannot load there.)"""
    build = [OTHER[0], "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}/build"]
    environment = os.environ | {"FLOWKERN_CUDA": "1"}
    subprocess.run(build, cwd=OTHER[1], env=environment, check=True, capture_output=True)
    shutil.copytree(HERE / "flowkern", tmp_path / "flowkern", ignore=_IGNORED, dirs_exist_ok=True)
    code = f"from flowkern import _library as l; print(l._REASONS, l.compiled({[*coupling.NAMED][0]!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "{'cpu': None, 'cuda': None} ('cpu', 'cuda')\n", done.stdout + done.stderr


def with_library(folder, python, tree):
    """Run CHECK by `python` on a copy of these sources with the CPU library that `tree` holds."""
    for name in ("flowkern", "tests"):
        shutil.copytree(HERE / name, folder / name, ignore=_IGNORED)
    library = "flowkern/libflowkern_cpu.so"
    shutil.copy(tree / library, folder / library)
    done = subprocess.run([python, "-c", CHECK], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

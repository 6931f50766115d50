"""The vocabulary of every instruction set against the standard library, in units in the last place.

That of AArch64 is compiled by a cross compiler and run by qemu.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).with_name("lanes.cpp")
AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw")
X86 = {"portable": (), "avx2": ("-mavx2", "-mfma"), "avx512": ("-mavx2", "-mfma", *AVX512)}
ARM = {"neon": ("-DFLOWKERN_NEON",)}
CROSS, QEMU = "aarch64-linux-gnu-g++", ("qemu-aarch64", "qemu-aarch64-static")
# Most units; what is not named is exact.
MOST = {
    **dict.fromkeys(("exp", "exp near 0", "exp2_nonpositive", "log", "log of subnormals", "sum"), 1.2),
    **dict.fromkeys(("log1p_unit", "atan"), 1.6),
    **dict.fromkeys(("tanh", "softplus", "sigmoid"), 2.0),
    **dict.fromkeys(("sine of turns", "cosine of turns"), 3.0),
}


def here():
    """The instruction sets of this processor."""
    if platform.machine() == "aarch64":
        return {"portable": (), **ARM}
    names = {"AVX512": ("portable", "avx2", "avx512"), "AVX2": ("portable", "avx2")}
    return {name: X86[name] for name in names.get(torch.backends.cpu.get_cpu_capability(), ("portable",))}


def errors(compiler, isa, flags, program, run=()):
    """{(function, type): its largest error}."""
    line = (compiler, "-std=c++20", "-O1", "-w", "-ffp-contract=off", f"-DFLOWKERN_ISA={isa}", *flags)
    subprocess.run((*line, str(SOURCE), "-o", str(program)), check=True)
    printed = subprocess.run((*run, str(program)), check=True, capture_output=True, text=True).stdout
    rows = (line.rsplit(" ", 2) for line in printed.splitlines())
    return {(name, kind): float(value) for name, kind, value in rows}


def assert_right(found):
    wrong = {at: error for at, error in found.items() if not error <= MOST.get(at[0], 0)}
    assert len(found) >= 60 and not wrong, wrong


@pytest.mark.parametrize("isa", here())
def test_lanes_compute_what_the_standard_library_does(isa, tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    assert_right(errors(compiler, isa, here()[isa], tmp_path / "lanes"))


def test_lanes_of_neon_compute_what_the_standard_library_does(tmp_path):
    """On other processors too; CI installs what it takes."""
    qemu = next(filter(None, map(shutil.which, QEMU)), None)
    if os.environ.get("CI") != "true" and not (qemu and shutil.which(CROSS)):
        pytest.skip(f"{CROSS} and qemu-aarch64 are not both there (on Debian: g++-aarch64-linux-gnu, qemu-user)")
    for isa, flags in {"portable": (), **ARM}.items():
        assert_right(errors(CROSS, isa, (*flags, "-static"), tmp_path / isa, run=(qemu,)))

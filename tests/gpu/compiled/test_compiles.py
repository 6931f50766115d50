"""Every kernel compiles for every architecture and stays within the limits beside it."""

import os
import subprocess
import sys

import pytest

from tests.gpu.compiled import cuda_kernels
from tests.gpu.compiled.resources import Resources, beyond, occupancy

# Triton's kernels are compiled in other processes: this one may have its interpreter loaded.
ARCHITECTURES = ("80", "90", "100", "gfx942")
OPS = sorted(path.parent.name.lstrip("_") for path in (cuda_kernels.ROOT / "flowkern" / "ops").glob("*/triton.py"))


def run(*words):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu.compiled", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("op", cuda_kernels.SOURCES)
def test_cuda_kernels(op):
    printed = run("cuda", op)
    for architecture in cuda_kernels.ARCHITECTURES:
        assert f"cuda, {op}, {architecture}\n" in printed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_triton_kernels(op, architecture):
    assert f"triton, {op}, {architecture}\n" in run("triton", op, architecture)


def test_what_is_beyond_a_limit_is_told():
    table = {"forward<float>": Resources(128, 40, 1024, 0, 8, 0.5)}
    assert beyond({"*": {"registers": 40, "occupancy": 0.5}}, table) == []
    assert beyond({"*<float>": {"spilled": 0}}, table) == ["forward<float>: spilled 8, limit 0"]
    assert beyond({"*": {"occupancy": 0.6}}, table) == ["forward<float>: occupancy 0.5, limit 0.6"]
    assert beyond({"backward*": {}}, table) == ["forward<float>: no limit", "backward*: fits no kernel"]


@pytest.mark.parametrize(
    "architecture, threads, registers, shared, expected",
    [
        ("80", 128, 32, 0, 1.0),
        ("80", 128, 64, 0, 0.5),
        ("80", 128, 65, 0, 28 / 64),  # registers are handed out in eights, to four schedulers
        ("90", 128, 32, 48 * 1024, 16 / 64),  # four blocks of 49 KiB in 228 KiB
        ("90a", 1024, 65, 0, 0.0),
        ("90a", 32, 255, 0, 8 / 64),
        ("80", 32, 16, 0, 0.5),  # at most 32 blocks
        ("gfx942", 256, 64, 0, 1.0),
        ("gfx942", 256, 128, 32 * 1024, 8 / 32),
    ],
)
def test_occupancy(architecture, threads, registers, shared, expected):
    assert occupancy(architecture, threads, registers, shared) == expected

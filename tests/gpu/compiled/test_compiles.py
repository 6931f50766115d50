"""Every kernel compiles for every architecture and stays within the limits beside it."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest

from tests.gpu.compiled import cuda_kernels
from tests.gpu.compiled.resources import Resources, beyond, occupancy

ARCHITECTURES = ("80", "90", "100", "gfx942")
OPS = sorted(path.parent.name.lstrip("_") for path in (cuda_kernels.ROOT / "flowkern" / "ops").glob("*/triton.py"))


# Kernels are compiled in other processes, for this one may have Triton's interpreter loaded. These are forked from
# one that has imported torch and Triton, once for all tests.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.gpu.compiled.__main__"])


def compiled(words):
    from tests.gpu.compiled.__main__ import printed

    return printed(*words)


def run(*words):
    with mock.patch.dict(os.environ):
        os.environ.pop("TRITON_INTERPRET", None)
        with ProcessPoolExecutor(1, SERVER) as pool:
            failed, printed = pool.submit(compiled, words).result()
    assert not failed, printed
    return printed


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

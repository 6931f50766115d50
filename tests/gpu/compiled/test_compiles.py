"""Every kernel compiles for every architecture and stays within the limits beside it."""

import multiprocessing
import os
import subprocess
import sys
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
    printed = run("triton", op, architecture)
    assert f"triton, {op}, {architecture}\n" in printed
    in_float32 = [line.split() for line in printed.splitlines() if "float32" in line]
    assert architecture == "gfx942" or all(words[-2] == "0" for words in in_float32), "float32 spills registers"


# Compilers that note how they are called and make empty files.
_COMPILER = """#!/bin/sh
case "$*" in *-dumpmachine*) echo x86_64-linux-gnu; exit;; *--dryrun*) echo '"-L{folder}"' >&2; exit;; esac
echo "$0 $*" >>{folder}/called
while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done
cat >/dev/null
"""


@pytest.mark.parametrize("asked, machine_code", [(None, ("80", "90a")), ("90a", ("90a",))])
def test_the_library_holds_machine_code_as_asked_and_ptx_for_later_gpus(asked, machine_code, tmp_path):
    for name in ("g++", "nvcc"):
        (tmp_path / name).write_text(_COMPILER.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "libcudart_static.a").touch()
    environment = os.environ | {"CXX": f"{tmp_path}/g++", "NVCC": f"{tmp_path}/nvcc", "FLOWKERN_CUDA": "1"}
    environment |= {"FLOWKERN_CUDA_ARCHITECTURES": asked} if asked else {}
    folders = (f"--build-lib={tmp_path / 'lib'}", f"--build-temp={tmp_path / 'temp'}")
    line = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    subprocess.run(line, cwd=cuda_kernels.ROOT, env=environment, check=True)
    calls = [call for call in (tmp_path / "called").read_text().splitlines() if "nvcc -c" in call]
    wanted = [
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in machine_code),
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert len(calls) == len(cuda_kernels.SOURCES)
    for call in calls:
        assert [word for word in call.split() if word.startswith("-gencode")] == wanted


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

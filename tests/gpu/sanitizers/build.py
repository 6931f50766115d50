"""Builds the CPU kernels with sanitizers, and says how to run a program that loads such a library."""

import functools
import os
import subprocess
import sys
from pathlib import Path

from tests.gpu.emulation.build import COMMON, ROOT, compiler, kept, run, sources, translated

HERE = Path(__file__).parent
ISAS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
}
_RUNNABLE = {"AVX512": 3, "AVX2": 2}
_QUIET = ("-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
FLAGS = {
    "address": ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}


def runnable():
    """The instruction sets of this machine."""
    import torch

    return [*ISAS][: _RUNNABLE.get(torch.backends.cpu.get_cpu_capability(), 1)]


def library(sanitizer, isa, csrc=ROOT / "csrc", more=()):
    """libflowkern_cpu.so of one instruction set, whose calls run on four threads (threads.cpp).

    more: sources that are linked as well.
    """
    import torch.utils.cpp_extension as torch

    common = (*COMMON, *FLAGS[sanitizer], *_QUIET, "-DFLOWKERN_SANITIZED", "-DFLOWKERN_PORTABLE_ONLY")
    of_torch = [f"-isystem{path}" for path in torch.include_paths()]
    jobs = [(source, (*common, *ISAS[isa]), csrc) for source in sources("*simd.cpp", csrc)]
    sides = (*sources("cpu.cpp", csrc), HERE / "threads.cpp", *more)
    jobs += [(source, (*common, "-DTORCH_TARGET_VERSION=0x020b000000000000", *of_torch), csrc) for source in sides]
    code = translated(jobs)
    folders = [f"-L{path}" for path in torch.library_paths()]

    def link(folder):
        to = folder / "flowkern.so"
        run("-shared", *FLAGS[sanitizer], *code, *folders, "-ltorch_cpu", "-lc10", "-o", to)

    return kept("flowkern.so", [FLAGS[sanitizer], *code], link)


def command(sanitizer, *arguments):
    """The command line of Python with "address" or "thread" there before everything else."""
    library = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    # The address sanitizer looks for the functions that throw when it is loaded.
    files = " ".join(_path(name) for name in (library, "libstdc++.so"))
    before = ["setarch", "-R"] if sanitizer == "thread" and _can_fix_addresses() else []
    return [*before, "env", f"LD_PRELOAD={files}", sys.executable, *arguments]


@functools.cache
def _can_fix_addresses():
    """Whether addresses can be those without randomisation; containers may forbid it."""
    return subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0


@functools.cache
def thread_sanitizer_starts():
    """Whether it does on this machine: with random addresses it may find its memory taken."""
    done = subprocess.run(command("thread", "-c", "pass"), capture_output=True)
    return done.returncode == 0


def environment(**variables):
    """Without leaks, of which Python has its own, and on one thread of torch's."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    return os.environ | options | {"OMP_NUM_THREADS": "1", **variables}


def _path(name):
    done = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True)
    return done.stdout.strip()

"""Builds the CPU kernels with sanitizers, and says how to run a program that loads such a library."""

import functools
import os
import subprocess
import sys
from pathlib import Path



from tests.emulation.build import COMMON, ROOT, compiler, kept, run, translated

HERE = Path(__file__).parent
ISAS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
}
_RUNNABLE = {"AVX512": 3, "AVX2": 2}
_QUIET = ("-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
THREAD = ("-fsanitize=thread",)
ADDRESS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")


def runnable():
    """The instruction sets of this machine."""
    import torch

    return [*ISAS][: _RUNNABLE.get(torch.backends.cpu.get_cpu_capability(), 1)]


def address_library(csrc=ROOT / "csrc"):
    """libflowkern_cpu.so with the address and undefined-behaviour sanitizers, by setup.py."""

    def build(folder):
        environment = os.environ | {"FLOWKERN_SANITIZE": "1", "FLOWKERN_CUDA": "0"}
        command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={folder}"]
        command += [f"--build-temp={folder / 'temp'}"]
        done = subprocess.run(
            command, cwd=csrc.parent, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)

    return kept("flowkern/libflowkern_cpu.so", [csrc, ROOT / "setup.py"], build)


def loops_library(flags, isa, csrc=ROOT / "csrc"):
    """The CPU loops for one instruction set, called from several threads (threads.cpp).

    flags: THREAD or ADDRESS.
    """
    options = (*COMMON, *flags, *_QUIET, *ISAS[isa], "-DFLOWKERN_SANITIZED", f"-DFLOWKERN_ISA={isa}")
    sources = (*sorted(csrc.glob("*/*_simd.cpp")), HERE / "threads.cpp")
    code = translated([(source, options, csrc) for source in sources])
    return kept(
        "loops.so",
        [flags, *code],
        lambda folder: run("-shared", *flags, *code, "-o", folder / "loops.so"),
    )


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

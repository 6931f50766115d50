"""Builds the CUDA sources, unchanged, as C++ with the emulated runtime.

`python -m tests.emulation.build` does it outside of a test.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RUNTIME = [HERE / f"{name}.cpp" for name in ("scheduler", "memory", "hooks", "symbols", "launch")]
COMMON = (
    "-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wno-maybe-uninitialized", "-ffp-contract=off",
    "-fno-extern-tls-init",
)  # fmt: skip
# What a CUDA compiler defines and includes by itself.
KERNEL = (
    "-x", "c++", "-D__CUDACC__", "-DFLOWKERN_ISA=cuda", "-DFLOWKERN_SANITIZED",
    f"-I{HERE / 'cuda'}", "-include", "cuda_runtime.h", "-Wno-unused-function",
)  # fmt: skip
# Loads, stores and undefined behaviour call hooks.cpp; the sanitizers' libraries are not linked.
CHECKED = (
    "-fsanitize=thread,undefined,float-cast-overflow", "-fno-sanitize=vptr",
    "--param=tsan-instrument-func-entry-exit=0",
)  # fmt: skip
# The address sanitizer; its library must be there before the program begins (LD_PRELOAD).
ADDRESS = ("-fsanitize=address",)


def kernels(csrc=ROOT / "csrc"):
    """The sources of all ops, and the entry points to them."""
    return (*sorted(csrc.glob("*/*_cuda.cu")), HERE / "kernels.cpp")


def built(flags, sources=kernels(), csrc=ROOT / "csrc"):
    """Path of a library of these sources; built once for each state of them, by one process.

    flags: CHECKED or ADDRESS. csrc: where the headers are.
    """
    folder = ROOT / "build" / "emulation" / _digest(flags, sources, csrc)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "kernels.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(flags, sources, csrc, folder, target)
    return target


def _digest(flags, sources, csrc):
    digest = hashlib.sha256(repr((_compiler(), COMMON, KERNEL, flags, str(csrc))).encode())
    for path in sorted((*csrc.glob("**/*.*"), *HERE.glob("**/*.cpp"), *HERE.glob("**/*.h"), *sources)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler():
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def _build(flags, sources, csrc, folder, target):
    # The runtime is not to be watched by its own hooks.
    quiet = () if flags == CHECKED else flags
    watched, plain = (*COMMON, *flags, *KERNEL), (*COMMON, "-O2", *quiet, f"-I{csrc}")
    jobs = [(s, watched if s.suffix == ".cu" else plain) for s in (*sources, *RUNTIME)]
    objects = [folder / f"{source.stem}.o" for source, _ in jobs]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job, o: _run(*job[1], "-c", job[0], "-o", o), jobs, objects))
    shared = folder / "shared.s"
    shared.write_text(_dynamic_shared(objects))
    partial = folder / "partial"
    _run("-shared", *quiet, *objects, "-x", "assembler", shared, "-o", partial)
    partial.rename(target)


def _dynamic_shared(objects):
    """Assembler code: every `extern __shared__` array begins at the same place."""
    symbols = subprocess.run(
        ["readelf", "-sW", *objects], check=True, capture_output=True, text=True
    ).stdout
    names = {"emulation_dynamic_shared", *re.findall(r"TLS +GLOBAL +DEFAULT +UND +(\w+)", symbols)}
    labels = "".join(f".globl {name}\n.type {name}, @object\n{name}:\n" for name in sorted(names))
    return (
        '.section .tbss,"awT",@nobits\n.balign 1024\n.zero 1024\n'
        f"{labels}.zero 232448\n.zero 1024\n"
        '.section .note.GNU-stack,"",@progbits\n'
    )


def _run(*arguments):
    done = subprocess.run([_compiler(), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(map(str, arguments))}\n{done.stderr}")


if __name__ == "__main__":
    print(built(CHECKED), built(ADDRESS))

"""Builds the CUDA sources, unchanged, as C++ with the emulated runtime.

`python -m tests.emulation.build` does it outside of a test.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SOURCES = (*sorted(ROOT.glob("csrc/*/*_cuda.cu")), HERE / "kernels.cpp")
FLAGS = (
    "-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wno-maybe-uninitialized", "-ffp-contract=off",
    "-DFLOWKERN_EMULATED", "-DFLOWKERN_ISA=cuda", f"-I{HERE}",
)  # fmt: skip
LIBRARY = (*FLAGS, "-shared")
# Local variables are not watched: with thousands of inlined ones, compiling takes minutes.
SANITIZED = (*FLAGS, "-fsanitize=address", "--param", "asan-stack=0", "-DFLOWKERN_REPLAY")


def built(flags):
    """Path of the library or program; built once for each state of the sources, by one process."""
    folder = ROOT / "build" / "emulation" / _digest(flags)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "kernels"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(flags, folder, target)
    return target


def _digest(flags):
    digest = hashlib.sha256(repr((_compiler(), flags)).encode())
    for path in sorted((*ROOT.glob("csrc/**/*.*"), *HERE.glob("*.cpp"), *HERE.glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler():
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def _build(flags, folder, target):
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    compile = [flag for flag in flags if flag != "-shared"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s, o: _run(*compile, "-c", "-x", "c++", s, "-o", o), SOURCES, objects))
    partial = folder / "partial"
    _run(*flags, *objects, "-o", partial)
    partial.rename(target)


def _run(*arguments):
    done = subprocess.run([_compiler(), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(map(str, arguments))}\n{done.stderr}")


if __name__ == "__main__":
    print(built(LIBRARY), built(SANITIZED))

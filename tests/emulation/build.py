"""Builds the CUDA sources as C++, unchanged, with the emulated runtime: python -m tests.emulation.build."""

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
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def library(sanitized=False):
    """Path of the shared library; built once for each state of the sources, by one process."""
    flags = FLAGS + (SANITIZE if sanitized else ())
    folder = ROOT / "build" / "emulation" / _digest(flags)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "kernels.so"
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
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s, o: _run(*flags, "-c", "-x", "c++", s, "-o", o), SOURCES, objects))
    partial = folder / "partial.so"
    _run(*flags, "-shared", *objects, "-o", partial)
    partial.rename(target)


def _run(*arguments):
    done = subprocess.run([_compiler(), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(map(str, arguments))}\n{done.stderr}")


if __name__ == "__main__":
    print(library(), library(sanitized=True))

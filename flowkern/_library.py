"""Loads the compiled kernels, which register themselves with torch's dispatcher."""

import functools
import os
from pathlib import Path

import torch

from flowkern import _torch

_FOLDER = Path(__file__).parent
_INSTRUCTION_SETS = (None, "", "portable", "avx2", "avx512")
_COMPILERS = {"cpu": "a C++20 compiler (g++ 11 or later)", "cuda": "nvcc and g++ 11 or later"}


def path(name):
    """Where the shared library of backend `name` ("cpu" or "cuda") lies once built."""
    return _FOLDER / f"libflowkern_{name}.so"


def unavailable(name):
    """Why the kernels of `name` cannot run, or None if they can."""
    if name == "cuda" and not gpu_is_visible():
        return _no_gpu()
    return _REASONS[name]


def gpu_is_visible():
    """Whether torch finds a GPU, asked once: every call of an op wants to know. Compilers know it as a constant."""
    return torch.cuda.is_available() if torch.compiler.is_compiling() else _found_gpu()


@functools.cache
def _found_gpu():
    return torch.cuda.is_available()


def _no_gpu():
    build = "has no CUDA support" if torch.version.cuda is None else "finds no GPU or driver"
    return f"this torch ({torch.version.__version__}) {build}"


def _load(name):
    if name == "cuda" and torch.version.cuda is None:
        return _no_gpu()
    if not path(name).exists():
        return (
            f"this installation holds no {name} kernels; the wheels for Linux do, and with {_COMPILERS[name]} "
            "so does what pip install --force-reinstall --no-deps . builds where flowkern's sources are"
        )
    wish = os.environ.get("FLOWKERN_CPU")
    if name == "cpu" and wish not in _INSTRUCTION_SETS:
        return f"FLOWKERN_CPU: expected portable, avx2 or avx512, got {wish!r}"
    try:
        torch.ops.load_library(path(name))
    except OSError as error:
        return f"{path(name).name} does not load: {error}"
    return None


_REASONS = {name: _load(name) for name in ("cpu", "cuda")}


def compiled(op):
    """For which of "cpu" and "cuda" the loaded libraries hold a kernel of `op`."""
    return _torch.compiled_for(f"flowkern::{op}", _REASONS)

"""The library of the emulation and of all ops' kernels: how it is loaded, called and told what to do."""

import contextlib
import ctypes
import functools
import re

import torch

from tests import cases
from tests.gpu.emulation import build

FORWARD, REVERSED, RANDOM = range(3)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("stride", ctypes.c_int64 * 3)
    ]  # fmt: skip

    @classmethod
    def of(cls, tensor):
        if tensor is None:
            return cls()
        return cls(tensor.data_ptr(), _extent(tensor), tensor.stride())


def _extent(tensor):
    """Bytes from a tensor's first element to the end of its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.itemsize


@functools.cache
def _library():
    return load(build.built(build.preloaded()))


def load(path):
    """A library of kernels; an entry point returns what was wrong, or None."""
    library = ctypes.CDLL(str(path))
    for op in cases.OPS:
        if hasattr(library, op):  # not all have kernels of CUDA
            getattr(library, op).restype = ctypes.c_char_p
    return library


def launched():
    """Names of the kernels that were launched in this process."""
    return _names("launched_kernels")


def kernels():
    """Names of all kernels in the library."""
    names = _names("all_functions")
    return {name for name in names if re.fullmatch(r"\w*kernel(<[^()]*>)?\([^()]*\)", name)}


def _names(function):
    entry = getattr(_library(), function)
    entry.restype = ctypes.c_char_p
    return {*entry().decode().splitlines()}


@contextlib.contextmanager
def configured(schedule=FORWARD, seed=0, most_blocks=2**31 - 1):
    """Inside, the threads of a block run in this order, and a grid has no more blocks than this."""
    _library().settings(schedule, seed, most_blocks)
    try:
        yield
    finally:
        _library().settings(FORWARD, 0, 2**31 - 1)


@contextlib.contextmanager
def loaded(library):
    """Inside, the kernels are those of another one."""
    global _library
    previous, _library = _library, library
    try:
        yield
    finally:
        _library = previous


def run(op, call, x):
    """Call an op's entry point for tensors of x's type; RuntimeError says what the emulation found."""
    report = getattr(_library(), op)(ctypes.byref(call), x.dtype == torch.float64)
    if report is not None:
        raise RuntimeError(build.located(report.decode(), _library()._name))

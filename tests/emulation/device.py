"""The raw ops of the dispatcher, by the CUDA kernels in the emulation, on CPU tensors."""

import contextlib
import ctypes
import functools
import struct
import subprocess
import tempfile
from unittest import mock

import torch

from tests.emulation import build

FORWARD, REVERSED, RANDOM = range(3)


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 3)]

    @classmethod
    def of(cls, tensor):
        if tensor is None:
            return cls()
        return cls(tensor.data_ptr(), tensor.stride())


_TENSORS = (
    "x", "params", "index", "bounds", "y", "logabsdet", "grad_y", "grad_logabsdet", "grad_params"
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 4),
        *((name, _Tensor) for name in _TENSORS),
        ("integers", ctypes.c_int64 * 3),
        ("numbers", ctypes.c_double * 9),
    ]


@functools.cache
def _library():
    return ctypes.CDLL(str(build.built(build.LIBRARY)))


@contextlib.contextmanager
def configured(schedule=FORWARD, seed=0, most_blocks=2**31 - 1):
    """Inside, the threads of a block run in this order, and a grid has no more blocks than this."""
    _library().settings(schedule, seed, most_blocks)
    try:
        yield
    finally:
        _library().settings(FORWARD, 0, 2**31 - 1)


def _call(x, params, integers, numbers, tensors):
    return _Call(
        (*x.shape, *params.shape[1:]), integers=tuple(map(int, integers)), numbers=numbers,
        **{name: _Tensor.of(t) for name, t in tensors.items()},
    )  # fmt: skip


def _in_process(op, call, wide, tensors):
    getattr(_library(), op)(ctypes.byref(call), wide)


def _sanitized(op, call, wide, tensors, withheld=0):
    """In a program with the address sanitizer; raises what it says."""
    pieces = [_memory(tensors.get(name)) for name in _TENSORS]
    sizes = (-1 if piece is None else len(piece) for piece in pieces)
    header = (op != "affine_coupling", wide, withheld, *sizes)
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("12q", *header) + bytes(call) + b"".join(filter(None, pieces)))
        file.flush()
        program = [build.built(build.SANITIZED), file.name]
        done = subprocess.run(program, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        file.seek(96 + ctypes.sizeof(call))
        for name, piece in zip(_TENSORS, pieces):
            if piece:
                ctypes.memmove(tensors[name].data_ptr(), file.read(len(piece)), len(piece))


def _memory(tensor):
    """The bytes from a tensor's first element to its last."""
    if tensor is None:
        return None
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) if tensor.numel() else -1
    return ctypes.string_at(tensor.data_ptr(), (last + 1) * tensor.itemsize)


_run = _in_process


@contextlib.contextmanager
def sanitized(withheld=0):
    """Inside, kernels run with the address sanitizer, `withheld` bytes short of shared memory."""
    with mock.patch.dict(globals(), _run=functools.partial(_sanitized, withheld=withheld)):
        yield


def _launch(op, x, params, integers, numbers, **tensors):
    tensors |= {"x": x, "params": params}
    _run(op, _call(x, params, integers, numbers, tensors), x.dtype == torch.float64, tensors)


def _forward(op, x, params, index, bounds, integers, numbers):
    y, logabsdet = torch.empty(x.shape, dtype=x.dtype), x.new_empty(x.shape[0])
    if params.shape[1] == 0:  # the torch side does not launch then
        return y.copy_(x), logabsdet.zero_()
    _launch(op, x, params, integers, numbers, index=index, bounds=bounds, y=y, logabsdet=logabsdet)
    return y, logabsdet


def _backward(op, grad_y, grad_logabsdet, x, params, index, bounds, integers, numbers):
    grad_x, grad_params = torch.empty(x.shape, dtype=x.dtype), torch.empty_like(params)
    if params.shape[1] == 0:
        return grad_x.copy_(grad_y), grad_params
    _launch(
        op, x, params, integers, numbers, index=index, bounds=bounds, y=grad_x, grad_y=grad_y,
        grad_logabsdet=grad_logabsdet, grad_params=grad_params,
    )  # fmt: skip
    return grad_x, grad_params


def _spline(direction, count):
    def op(*arguments):
        tensors, (index, bound, inverse, tails, *numbers) = arguments[:count], arguments[count:]
        integers = (inverse, tails)
        name = "rational_quadratic_spline"
        return direction(name, *tensors, index, bound, integers, tuple(numbers))

    return op


def _affine(direction, count):
    def op(*arguments):
        tensors, (index, *integers) = arguments[:count], arguments[count : count + 4]
        numbers = arguments[count + 4 :]
        return direction("affine_coupling", *tensors, index, None, integers, numbers)

    return op


OPS = {
    "affine_coupling": _affine(_forward, 2),
    "affine_coupling_backward": _affine(_backward, 4),
    "rational_quadratic_spline": _spline(_forward, 2),
    "rational_quadratic_spline_backward": _spline(_backward, 4),
}


@contextlib.contextmanager
def emulated():
    """Inside, what calls itself backend "cpu" is the emulated CUDA one."""
    with contextlib.ExitStack() as stack:
        for name, op in OPS.items():
            stack.enter_context(mock.patch.object(torch.ops.flowkern, name, op))
        yield

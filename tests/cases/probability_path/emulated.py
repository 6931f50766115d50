"""The dispatcher ops by the CUDA kernels in the emulation (emulated.cpp)."""

import ctypes
from dataclasses import replace

from flowkern.ops._probability_path import native
from tests.cases.probability_path import CASES as NAMED
from tests.cases.probability_path import EDGES
from tests.gpu.emulation.library import Tensor, run

_PATH_TENSORS = (
    "x0", "x1", "t", "noise", "seed", "x_t", "u_t", "drawn", "grad_x", "grad_u", "grad_x0", "grad_x1",
    "grad_t",
)  # fmt: skip


class _PathCall(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 2),
        *((name, Tensor) for name in _PATH_TENSORS),
        ("kind", ctypes.c_int64),
        ("sigma", ctypes.c_double),
    ]


def _path(x0, x1, t, noise, seed, path, sigma):
    x_t, u_t, drawn = native.new_outputs(x0, t)
    tensors = dict(x0=x0, x1=x1, t=t, noise=noise, seed=seed, x_t=x_t, u_t=u_t, drawn=drawn)
    return _run_path(tensors, path, sigma, (x_t, u_t, drawn))


def _path_backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma):
    grad_x0, grad_x1, grad_t = native.new_grads(x0, of_t)
    tensors = dict(
        x0=x0, x1=x1, t=t, noise=noise, seed=seed, grad_x=grad_x, grad_u=grad_u, grad_x0=grad_x0,
        grad_x1=grad_x1, grad_t=grad_t if of_t else None,
    )  # fmt: skip
    return _run_path(tensors, path, sigma, (grad_x0, grad_x1, grad_t))


def _run_path(tensors, path, sigma, outputs):
    x0 = tensors["x0"]
    given = {name: Tensor.of(tensor) for name, tensor in tensors.items()}
    run("probability_path", _PathCall(tuple(x0.shape), kind=path, sigma=sigma, **given), x0)
    return outputs


OPS = {"probability_path": _path, "probability_path_backward": _path_backward}
CASES = NAMED | EDGES
# In which every kernel runs.
EVERY = [replace(case, batch=min(case.batch, 1)) for case in NAMED.values()]
SAME_BITS = EDGES
MOST_BLOCKS = 1

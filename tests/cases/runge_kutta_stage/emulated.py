"""The dispatcher ops by the CUDA kernels in the emulation (emulated.cpp)."""

import ctypes

import torch

from tests.cases.runge_kutta_stage import CASES as NAMED
from tests.cases.runge_kutta_stage import Case
from tests.gpu.emulation.library import Tensor, run


class _StageCall(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 2), ("stages", ctypes.c_int64), ("y", Tensor), ("y1", Tensor),
        ("k", Tensor * 8), ("weights", Tensor), ("out", Tensor), ("rtol", ctypes.c_double),
        ("atol", ctypes.c_double),
    ]  # fmt: skip


def _stage(y, k, weights):
    return _run_stage(y, None, k, weights, 0, 0, torch.empty_like(y))


def _error(y0, y1, k, weights, rtol, atol):
    sums = y0.new_empty(y0.shape[:1] or (1,))
    return _run_stage(y0, y1, k, weights, rtol, atol, sums.zero_() if y0.numel() == 0 else sums)


def _run_stage(y, y1, k, weights, rtol, atol, out):
    rows = y.shape[0] if y.dim() else 1
    by_row = weights if weights.dim() == 2 else weights.expand(max(rows, 1), -1)
    of = Tensor.of
    sizes, stages = (rows, y.numel() // max(rows, 1)), tuple(map(of, k))
    call = _StageCall(sizes, len(k), of(y), of(y1), stages, of(by_row), of(out), rtol, atol)
    run("runge_kutta_stage", call, y)
    return out


OPS = {"runge_kutta_error": _error, "runge_kutta_stage": _stage}
CASES = {
    **NAMED,
    # More blocks than one, of 512 elements or of some rows each.
    "rows-257": Case((257, 3), 3, by_row=True),
    "rows-1023": Case((1023, 1), 2),
}
EVERY = [*CASES.values()]  # in which every kernel runs
SAME_BITS = {name: CASES[name] for name in ("rows-257", "rows-1023", "(2, 1100) by row")}
MOST_BLOCKS = 1

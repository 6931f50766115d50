"""Named Runge-Kutta stages and errors of steps, and their comparison with the float64 reference."""

from dataclasses import dataclass

import torch

import flowkern
from flowkern.ops import runge_kutta_error, runge_kutta_stage
from flowkern.ops._runge_kutta_stage import reference
from tests.cases.tensors import generator_of
from tests.tolerances import assert_within

LABEL = "stage"
RTOL, ATOL = 1e-1, 1e-2


@dataclass(frozen=True)
class Case:
    """States of one shape; by_row: each of their rows has weights of its own; not finite: y1, in one row."""

    shape: tuple
    stages: int = 6
    by_row: bool = False
    finite: bool = True

    def tensors(self, dtype, seed=0, device="cpu"):
        """y, y1, a list of k, and weights, which are not contiguous."""
        generator = generator_of(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=dtype).to(device)

        y, y1, *k = normal(self.stages + 2, *self.shape)
        if not self.finite:
            y1[1] = torch.inf
        return y, y1, k, normal(*self.shape[: int(self.by_row)], self.stages + 1)[..., 1:]


_SHAPES = ((), (1,), (70,), (7, 3), (5, 8), (3, 2, 16), (2, 1100), (2, 513), (0, 3), (3, 0))
CASES = {
    f"{shape}{' by row' * by_row}": Case(shape, by_row=by_row)
    for shape in _SHAPES
    for by_row in ((False, True) if shape else (False,))
} | {f"{stages} stages": Case((7, 3), stages, stages % 2 == 0) for stages in range(1, 9)}
CASES["not finite"] = Case((7, 3), finite=False)


def evaluate(case, y, y1, k, weights, backend):
    """The stage, and the error of the step from y to y1."""
    with flowkern.backend(backend):
        return runge_kutta_stage(y, k, weights), runge_kutta_error(y, y1, k, weights, RTOL, ATOL)


def results(case, backend, dtype, seed=0, device="cpu"):
    """All results of a backend."""
    return evaluate(case, *case.tensors(dtype, seed, device), backend)


def check(case, backend, dtype, seed=0, device="cpu"):
    """Both within as many roundings of the largest term as there are terms, and some."""
    y, y1, k, weights = case.tensors(dtype, seed, device)
    got = evaluate(case, y, y1, k, weights, backend)
    y, y1, weights, *k = (tensor.double() for tensor in (y, y1, weights, *k))
    absolute = [tensor.abs() for tensor in (weights, *k)]
    want = reference.forward(y, weights, *k), reference.error(y, y1, weights, RTOL, ATOL, *k)
    scales = (
        reference.forward(y.abs(), *absolute),
        reference.error(y, y1, absolute[0], RTOL, ATOL, *absolute[1:]),
    )
    for name, result, expected, scale in zip(("stage", "error"), got, want, scales):
        unit = torch.finfo(dtype).eps * (scale.nan_to_num(0).max().item() if scale.numel() else 0)
        error = torch.where(result.isnan() & expected.isnan() | (result == expected), 0, (result - expected).abs())
        worst = error.max().item() if error.numel() else 0.0
        assert_within(worst / unit if worst else 0.0, 16, name)

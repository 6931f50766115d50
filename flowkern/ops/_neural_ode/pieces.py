"""Long solves on the CPU in pieces, between which Python looks at signals such as Ctrl-C.

A kernel runs to its end, whatever happens outside. A piece takes up to about a second: all steps of some rows, or,
where one row alone is long, some of the steps, whatever the number of rows. Gradients go through the pieces by
autograd, which keeps the state at the end of each.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

WORK = 2e10  # multiplications in a piece: on two cores with AVX-512 a quarter of a second, with gradients one
_ROWS = 256  # a row is long if this many of them would be more than a piece
_ACTIVATION = 20  # multiplications that take as long as one activation


def solve(
    run: Callable,
    y: torch.Tensor,
    spec: Any,
    starts: torch.Tensor,
    sizes: torch.Tensor,
    row_bias: torch.Tensor | None,
    time: torch.Tensor | None,
    frequencies: torch.Tensor | None,
    closed: torch.Tensor | None,
    directions: torch.Tensor | None,
    *tensors: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ends (I, N, D) and sums (I, 3, N) of run(y, spec, starts, …), in pieces if need be."""
    of_step = _work(spec, closed, directions, tensors)
    unit = spec.every if spec.every < spec.steps else 1
    most = max(unit, int(WORK / _ROWS / of_step) // unit * unit)  # steps in a piece
    steps = len(starts) * spec.steps
    rows = max(1, int(WORK / of_step / max(min(most, steps), 1)))
    if steps <= most and len(y) <= rows:
        return run(y, spec, starts, sizes, row_bias, time, frequencies, closed, directions, *tensors)
    parts = []
    for begin in range(0, max(len(y), 1), rows):
        some = slice(begin, begin + rows)
        own = row_bias if row_bias is None else row_bias[some]
        noise = directions if directions is None else directions[:, some]
        rest = own, time, frequencies, closed, noise, *tensors
        parts.append(_in_turn(run, y[some], spec, starts, sizes, most, rest))
    ends, sums = zip(*parts)
    return torch.cat(ends, 1), torch.cat(sums, 2)


def _work(spec, closed, directions, tensors):
    """Multiplications for a step of a row."""
    weights = tensors[: len(tensors) // 2]
    products, units = sum(w.numel() for w in weights), sum(w.shape[0] for w in weights[:-1])
    tangents = 0 if directions is None else len(directions)
    trace = 0 if closed is None else closed.numel()
    return len(spec.b) * (products * (1 + tangents) + trace + _ACTIVATION * units)


def _in_turn(run, y, spec, starts, sizes, most, rest):
    """All intervals, some of them or of their steps at once."""
    ends, sums, total = [], [], y.new_zeros(3, len(y))
    intervals = max(1, most // spec.steps)
    for i in range(0, len(starts), intervals):
        some = slice(i, i + intervals)
        if spec.steps <= most:
            end, integrals = run(y, spec, starts[some], sizes[some], *rest)
        else:
            end, integrals = _steps_in_turn(run, y, spec, starts[some], sizes[some], most, rest)
        y, integrals = end[-1], total + integrals
        total = integrals[-1]
        ends.append(end)
        sums.append(integrals)
    return torch.cat(ends), torch.cat(sums)


def _steps_in_turn(run, y, spec, start, size, most, rest):
    """One interval, some of its steps at once."""
    total = 0
    for step in range(0, spec.steps, most):
        count = min(most, spec.steps - step)
        part = spec._replace(steps=count, every=math.gcd(spec.every, count) if spec.every < spec.steps else count)
        end, sums = run(y, part, start + step * size, size, *rest)
        y, total = end[-1], total + sums
    return end, total

"""Fixed grids: everything about the grid is worked out before the first step.

The loop over the steps has no control flow that depends on data. Where `t` is the grid, nothing is
read back from the device at all; a step size needs the times on the host, once.
"""

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from flowkern import _torch
from flowkern.ode import stages as _stages
from flowkern.ode.problem import check_rows, number, on_host, real_dtype
from flowkern.ops import runge_kutta_stage
from flowkern.ops._status import check_finite


def solve(
    problem,
    method,
    per_sample=False,
    *,
    step_size=None,
    grid_constructor=None,
    interp="linear",
    perturb=False,
    on_failure=None,
):
    """The states at problem.t, (T, …)."""
    if not (on_failure is None or isinstance(on_failure, str) and on_failure in ("raise", "warn")):
        raise ValueError(f"options: on_failure: expected None, 'raise' or 'warn', got {on_failure!r}")
    if not isinstance(interp, str) or interp not in ("linear", "cubic"):
        raise ValueError(f"options: interp: expected 'linear' or 'cubic', got {interp!r}")
    if step_size is not None and grid_constructor is not None:
        raise ValueError("options: step_size and grid_constructor are mutually exclusive")
    if not (grid_constructor is None or callable(grid_constructor)):
        raise TypeError(
            f"options: grid_constructor: expected a function (func, y0, t) → grid, got {grid_constructor!r}"
        )
    if per_sample and grid_constructor is not None:
        raise ValueError("options: grid_constructor: not with per_sample")
    grid, outputs = _own_grids(problem, step_size) if per_sample else grid_of(problem, step_size, grid_constructor)
    states = [problem.y0] * len(problem.t)
    step = _stepper(problem, method, grid, perturb)
    y0 = problem.y0
    for i, here in enumerate(outputs):
        if problem.callbacks:
            problem.called("callback_step", grid[i], y0, (grid[i + 1] - grid[i]).abs())
        y1, first = step(i, y0)
        for j, exact in here:
            if not exact:
                interpolate = _linear if interp == "linear" else _cubic(problem.func, first)
                states[j] = interpolate(problem.t[j], grid[i], grid[i + 1], y0, y1)
            else:
                states[j] = y1
        y0 = y1
    if on_failure is not None:
        _check_end(y0, method, per_sample, on_failure)
    return torch.stack(states)


@torch.compiler.disable
def _check_end(y, method, per_sample, on_failure):
    """Raise or warn if the last state is not finite; on the way there no such state becomes finite again."""
    finite = y.isfinite()
    finite = finite.reshape(y.shape[0], y.shape[1:].numel()).all(1) if per_sample else finite.all()
    check_finite(finite, method.name, on_failure)


def _stepper(problem, method, grid, perturb):
    """step(i, y) → the state after step i, and the derivative before it."""
    stages, dtype = _stages.of(method), problem.dtype
    h = grid[1:] - grid[:-1]
    wide = (*grid[1:].shape, *(1,) * (problem.y0.dim() - 1)) if grid.dim() == 2 else h.shape
    times = [t.view(wide).unbind() for t in _stage_times(method, grid, h, dtype, perturb)]
    weights = h.to(dtype).unsqueeze(-1) * _stages.coefficients(method, dtype, grid.device)
    weights = [w.unbind() for w in weights.split(stages.sizes, -1)]

    def step(i, y):
        first = problem.func(times[0][i], y)
        here = [t[i] for t in times[1:]], stages, [w[i] for w in weights]
        _, y1 = _stages.evaluate(problem.func, y, first, *here)
        return y1, first

    return step


def _stage_times(method: Any, grid: Any, h: Any, dtype: Any, perturb: Any) -> Iterator[Any]:
    """The times of each stage in all steps; perturbed ones lie just inside their step."""
    start, end = grid[:-1].to(dtype), grid[1:].to(dtype)
    for stage, c in enumerate(method.c):
        if c == 0 or c == 1:
            times = end if c else start
            if perturb and stage in (0, len(method.c) - 1):
                fixed = times.detach()
                times = times + (torch.nextafter(fixed, start if c else end) - fixed)
            yield times
        else:
            yield (grid[:-1] + c * h).to(dtype)


def grid_of(problem, step_size, grid_constructor=None):
    """The grid, and for each step the outputs (number, whether at its end) that it reaches."""
    t, times = problem.t, problem.times
    if len(t) == 1 or step_size is None and grid_constructor is None:
        return t, [[(j, True)] for j in range(1, len(t))]
    times = tuple(on_host(t)) if times is None else times
    if grid_constructor is None:
        step = _step(step_size, times[-1] - times[0])
        steps, outputs = _plan(times, step, t.dtype, t.requires_grad)
        inner = torch.arange(steps, dtype=t.dtype, device=t.device) * step + t[0]
        return torch.cat((inner, t[-1:])), outputs
    grid = grid_constructor(problem.func, problem.y0, t)
    points = on_host(grid)
    if (points[0], points[-1]) != (times[0], times[-1]):
        raise ValueError(f"options: grid_constructor: expected a grid from {times[0]} to {times[-1]}")
    return grid, _outputs(points, times, t.requires_grad)


def _own_grids(problem, step_size):
    """The grids (G, N) of rows with times of their own: each output interval has equal steps, as many for every row."""
    t, rows = problem.t, problem.y0.shape[0]
    t = t if t.dim() == 2 else t.unsqueeze(1).expand(-1, rows)
    counts = [1] * (len(t) - 1)
    if step_size is not None and t.numel() > 0:
        steps = [way / _positive(step_size) for way in _longest_ways(t.detach(), problem.times)]
        counts = [max(1, math.ceil(number - 1e-6)) for number in steps]  # whatever is rounded
    elif problem.times is None and t.device.type == "cpu" and not torch.compiler.is_compiling():
        check_rows(t.detach())
    grid = [t[:1]]
    outputs: list[Any] = []
    for j, count in enumerate(counts, 1):
        parts = torch.arange(1, count + 1, dtype=t.dtype, device=t.device) / count
        grid.append(torch.lerp(t[j - 1], t[j], parts.unsqueeze(1)))
        outputs += [[]] * (count - 1) + [[(j, True)]]
    return torch.cat(grid), outputs


def _longest_ways(t, times):
    """Between two outputs, of all rows; read from the device where the times are not on the host."""
    if times is not None:
        return [abs(end - start) for start, end in pairwise(times)]
    check_rows(t)
    return (t[1:] - t[:-1]).abs().amax(1).tolist()


def _positive(step_size):
    size = number("options: step_size", step_size)
    if not size > 0:
        raise ValueError(f"options: step_size: expected a positive number, got {size}")
    return size


def _step(step_size, length):
    """The step towards the last time, no longer than the way there."""
    return math.copysign(min(_positive(step_size), abs(length)), length)


@_torch.constant_result
def _plan(times, step, dtype, differentiable):
    """The number of steps of one size, the last one shorter, and which outputs each reaches."""
    with _torch.without_modes() if torch.compiler.is_exporting() else contextlib.nullcontext():
        t = torch.tensor(times, dtype=dtype)
        steps = math.ceil((t[-1] - t[0]) / step + 1) - 1 if step else 1  # rounded as torchdiffeq does
        points = (torch.arange(steps, dtype=dtype) * step + t[0]).tolist()
    return steps, _outputs([*points, times[-1]], times, differentiable)


def _outputs(points, times, differentiable):
    """For each step the outputs that it reaches; none is at its end where its time has a derivative,
    unless the step has no length."""
    forward = times[-1] >= times[0]
    j, outputs = 1, []
    for start, end in pairwise(points):
        here = []
        while j < len(times) and (end >= times[j] if forward else end <= times[j]):
            here.append((j, end == times[j] and (start == end or not differentiable)))
            j += 1
        outputs.append(here)
    return outputs


def _linear(t, t0, t1, y0, y1):
    slope = ((t - t0) / (t1 - t0)).to(real_dtype(y0))
    return runge_kutta_stage(y0, (y1, y0), torch.stack((slope, -slope)))


def _cubic(func, f0):
    """Hermite interpolation; the derivative at the end is one more evaluation."""

    def interpolate(t, t0, t1, y0, y1):
        f1 = func(t1.to(real_dtype(y0)), y1)
        h = t1 - t0
        x = (t - t0) / h
        rise = x * x * (3 - 2 * x)
        weights = (rise, -rise, x * (1 - x) * (1 - x) * h, x * x * (x - 1) * h)
        return runge_kutta_stage(y0, (y1, y0, f0, f1), torch.stack(weights).to(real_dtype(y0)))

    return interpolate

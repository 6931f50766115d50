"""Fixed grids: everything about the grid is worked out before the first step.

The loop over the steps has no control flow that depends on data. Where `t` is the grid, nothing is
read back from the device at all; a step size needs the times on the host, once.
"""

import math
from itertools import pairwise

import torch

from flowkern.ode import stages as _stages
from flowkern.ode.problem import real_dtype
from flowkern.ops import runge_kutta_stage


def solve(problem, method, *, step_size=None, grid_constructor=None, interp="linear", perturb=False):
    """The states at problem.t, (T, …)."""
    if interp not in ("linear", "cubic"):
        raise ValueError(f"options: interp: expected 'linear' or 'cubic', got {interp!r}")
    if step_size is not None and grid_constructor is not None:
        raise ValueError("options: step_size and grid_constructor are mutually exclusive")
    grid, outputs = grid_of(problem, step_size, grid_constructor)
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
    return torch.stack(states)


def _stepper(problem, method, grid, perturb):
    """step(i, y) → the state after step i, and the derivative before it."""
    stages, dtype = _stages.of(method), problem.dtype
    h = grid[1:] - grid[:-1]
    times = [t.unbind() for t in _stage_times(method, grid, h, dtype, perturb)]
    weights = h.to(dtype).unsqueeze(1) * _stages.coefficients(method, dtype, grid.device)
    weights = [w.unbind() for w in weights.split(stages.sizes, 1)]

    def step(i, y):
        first = problem.func(times[0][i], y)
        here = [t[i] for t in times[1:]], stages, [w[i] for w in weights]
        k, _ = _stages.evaluate(problem.func, y, first, *here)
        return _stages.combined(y, k, stages.step, weights[-2][i]), first

    return step


def _stage_times(method, grid, h, dtype, perturb):
    """The times of each stage in all steps; perturbed ones lie just inside their step."""
    start, end = grid[:-1].to(dtype), grid[1:].to(dtype)
    for number, c in enumerate(method.c):
        if c == 0 or c == 1:
            times = end if c else start
            if perturb and number in (0, len(method.c) - 1):
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
    times = tuple(t.detach().tolist()) if times is None else times
    if grid_constructor is None:
        step = _step(float(step_size), times[-1] - times[0])
        steps, outputs = _plan(times, step, t.dtype, t.requires_grad)
        inner = torch.arange(steps, dtype=t.dtype, device=t.device) * step + t[0]
        return torch.cat((inner, t[-1:])), outputs
    grid = grid_constructor(problem.func, problem.y0, t)
    points = grid.detach().tolist()
    if (points[0], points[-1]) != (times[0], times[-1]):
        raise ValueError(f"options: grid_constructor: expected a grid from {times[0]} to {times[-1]}")
    return grid, _outputs(points, times, t.requires_grad)


def _step(step_size, length):
    """The step towards the last time, no longer than the way there."""
    if not step_size > 0:
        raise ValueError(f"options: step_size: expected a positive number, got {step_size}")
    return math.copysign(min(step_size, abs(length)), length)


def _plan(times, step, dtype, differentiable):
    """The number of steps of one size, the last one shorter, and which outputs each reaches."""
    t = torch.tensor(times, dtype=dtype)
    steps = math.ceil((t[-1] - t[0]) / step + 1) - 1 if step else 1  # rounded as torchdiffeq does
    points = torch.arange(steps, dtype=dtype) * step + t[0]
    return steps, _outputs([*points.tolist(), times[-1]], times, differentiable)


# What torch.compiler.assume_constant_result does, without its import of the compiler.
_plan._dynamo_marked_constant = True


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

"""Adaptive steps that the whole batch shares, with torchdiffeq's controller.

The times, steps and decisions are numbers on the host: one value, the error of a step, is read back
from typing import Any
from the device for each step tried. Derivatives do not go through the choice of steps.
"""

import bisect
import math
from typing import Any

import torch

from flowkern.ode import control as _control
from flowkern.ode import stages as _stages
from flowkern.ode.problem import on_host
from flowkern.ops import runge_kutta_error, runge_kutta_stage
from flowkern.ops._status import Status, fail


def solve(problem, method, rtol, atol, options):
    """The states at problem.t, (T, …)."""
    return _Solve(problem, method, rtol, atol, _control.control(options)).states()


class _Solve:
    """A solve under way. Time runs forward here: `time` and `h` are sign·t and |step|.

    `step` is what is kept of the last accepted step, (start, h, y before it, k), or None.
    """

    def __init__(self, problem, method, rtol, atol, control):
        self.problem, self.method, self.control = problem, method, control
        self.rtol, self.atol = rtol, atol
        self.stages = _stages.of(method)
        self.norm = _control.state_norm(control.norm, problem.shapes)
        self.sign = -1.0 if problem.times[-1] < problem.times[0] else 1.0
        self.time, self.y = self.sign * problem.times[0], problem.y0
        self.step: Any = None  # the last one: its time, size, state and slopes
        self.ratio, self.dense = 0.0, _control.dense_matrix(method, self.y.device)
        t = problem.t.double()
        self.moved = t - t.detach()  # 0, with the derivative of the times
        self.jumps = _ahead(control.jump_t, self.sign, self.time)
        self.stops = sorted({*self.jumps, *_ahead(control.step_t, self.sign, self.time)})
        if len(problem.times) > 1:
            self.f = problem.func(self._times(problem.times[:1])[0], self.y)
            self.h = self._first_step()

    def states(self) -> Any:
        states = [self.y]
        for number, t in enumerate(self.problem.times[1:], 1):
            if not self._reach(self.sign * t):
                rest = len(self.problem.times) - number
                states += [torch.full_like(self.y, torch.nan)] * rest
                break
            states.append(self._dense(number))
        return torch.stack(states)

    def _reach(self, time):
        """Steps until that time is passed; whether it was."""
        tried = 0
        while self.time < time:
            status = Status.STEP_LIMIT if tried >= self.control.max_num_steps else self._try()
            tried += 1
            if status:
                status = torch.tensor(int(status))
                fail(self.method.name, status, self.control.on_failure)
                return False
        return True

    def _try(self) -> Any:
        """One step, accepted or not; why it cannot be made, or `Status.OK`."""
        h, end = self._size()
        if not end > self.time:
            return Status.STEP_UNDERFLOW if math.isfinite(self.ratio) else Status.NON_FINITE
        y0 = self.y
        self._called("callback_step", self.time, y0, h)
        k, y1, self.ratio = self._evaluated(h, end)
        shortest = h <= self.control.min_step
        accepted = self.ratio <= 1 or shortest and math.isfinite(self.ratio)
        self._called(f"callback_{'accept' if accepted else 'reject'}_step", self.time, y0, h)
        if accepted:
            self.step = self.time, h, y0, k
            self.time, self.y, self.f = end, y1, k[-1]
            if end in self.jumps:
                self.f = self.problem.func(self._beside(end, math.inf), y1)
        elif shortest:
            return Status.NON_FINITE
        self.h = h * self._factor()
        return Status.OK

    def _size(self) -> Any:
        """The next step and its end, within bounds and not beyond the next time to stop at."""
        h = min(max(self.h, self.control.min_step), self.control.max_step)
        h = h if math.isfinite(h) else 0.0
        stop = bisect.bisect_right(self.stops, self.time)
        if stop < len(self.stops) and self.stops[stop] < self.time + h:
            return self.stops[stop] - self.time, self.stops[stop]
        return h, self.time + h

    def _evaluated(self, h, end):
        """The stages, the state after the step and its error in units of the tolerance."""
        signed, c = self.sign * h, self.method.c
        times = self._times([self.sign * (end if part == 1 else self.time + part * h) for part in c[1:]])
        if end in self.jumps:  # the stages at the end see the field before it jumps
            before = self._beside(end, -math.inf)
            times = [before if part == 1 else t for part, t in zip(c[1:], times)]
        coefficients = self.stages.coefficients
        weights = self._tensor([signed * weight for row in coefficients for weight in row])
        weights = weights.split(self.stages.sizes)
        k, y1 = _stages.evaluate(self.problem.func, self.y, self.f, times, self.stages, weights)
        return k, y1, self._error(k, y1, weights[-1])

    def _error(self, k, y1, weights):
        y0, k = self.y, [k[j] for j in self.stages.error]
        if self.control.norm is None and self.problem.shapes is None:
            sums = runge_kutta_error(y0, y1, k, weights, self.rtol, self.atol)
            return math.sqrt(on_host(sums.sum()) / max(y0.numel(), 1))
        y0, y1, *k = (tensor.reshape(-1) for tensor in (y0, y1, *k))  # rows of one element
        tolerances = map(_flat, (self.rtol, self.atol))
        squares = runge_kutta_error(y0, y1, k, weights, *tolerances)
        return on_host(self.norm(squares.sqrt().view_as(self.y)))

    def _factor(self) -> Any:
        """By how much the next step is longer."""
        control, ratio = self.control, self.ratio
        if ratio == 0:
            return control.ifactor
        if not math.isfinite(ratio):
            return control.dfactor
        least = 1.0 if ratio < 1 else control.dfactor
        return min(control.ifactor, max(control.safety / ratio ** (1 / self.method.order), least))

    def _first_step(self) -> Any:
        if self.control.first_step is not None:
            return self.control.first_step
        start = self._tensor(self.sign * self.time)
        h = on_host(_control.first_step(
            self.problem.func, start, self.y, self.f, self.method.order, self.rtol, self.atol,
            self.norm, self.sign,
        ))  # fmt: skip
        self.ratio = h  # what is not finite here is told from a step that is too short
        return h

    def _dense(self, number):
        """The output of that number, from the last accepted step."""
        if self.step is None and not self.moved.requires_grad:
            return self.y
        if self.step is None:  # no time has passed, but it has a derivative
            passed = (self.moved[number] - self.moved[0]).to(self.problem.dtype)
            return runge_kutta_stage(self.y, (self.f,), passed.unsqueeze(0))
        start, h, y0, k = self.step
        signed = self.sign * h
        past = self.problem.times[number] - self.sign * start
        theta = (past + (self.moved[number] - self.moved[0])) / signed
        weights = _control.dense_weights(self.dense, signed, theta)
        return runge_kutta_stage(y0, k, weights.to(self.problem.dtype))

    def _times(self, values):
        """Times as func sees them, with the derivative of the first one."""
        times = self._tensor(values)
        return (times + self.moved[0].to(times) if self.moved.requires_grad else times).unbind()

    def _beside(self, time, direction):
        """The time next to another, as func sees it."""
        (t,) = self._times([self.sign * time])
        return t + (torch.nextafter(t.detach(), self._tensor(self.sign * direction)) - t.detach())

    def _tensor(self, values):
        return torch.tensor(values, dtype=self.problem.dtype, device=self.y.device)

    def _called(self, name, time, y, h):
        if name in self.problem.callbacks:
            self.problem.called(name, self._tensor(self.sign * time), y, self._tensor(h))


def _flat(tolerance):
    return tolerance.reshape(-1) if isinstance(tolerance, torch.Tensor) else tolerance


def _ahead(times, sign, start):
    """Times that are still to come, sorted in the direction of the solve."""
    if times is None:
        return []
    values = times.tolist() if isinstance(times, torch.Tensor) else list(times)
    return sorted(sign * t for t in values if sign * t > start)

"""Adaptive steps of each sample: the rows of y have times, steps and ends of their own.

Every evaluation is one of the whole batch. Rows that have arrived, or failed, get steps of length 0
and stay as they are. Decisions are made on the device; three numbers are read back for each step, and
the rows that an output is made of.
"""

from typing import Any

import torch

from flowkern.ode import control as _control
from flowkern.ode import stages as _stages
from flowkern.ode.problem import check_rows, on_host
from flowkern.ops import runge_kutta_error, runge_kutta_stage
from flowkern.ops._status import Status, fail

_RUNNING = -1


def solve(problem, method, rtol, atol, options):
    """The states at problem.t, (T, N, …)."""
    solve = _Solve(problem, method, rtol, atol, _control.control(options))
    tried = 0
    while solve.under_way and tried < solve.control.max_num_steps:
        solve.advance()
        tried += 1
    return solve.finished()


class _Solve:
    """A solve under way; all but y, f and states are (N,) and in float64.

    `time` is how far a row has come, from 0; `arrival` (T, N) how far its outputs are, with the
    derivative of the times; `reached` how many of them it has. `starts` are the outputs of rows where no
    time has passed, `made` the others: their places in (T·N,), and states.
    """

    def __init__(self, problem, method, rtol, atol, control):
        for name in ("norm", "step_t", "jump_t"):
            if getattr(control, name) is not None:
                raise ValueError(f"options: {name}: not with per_sample")
        self.problem, self.method, self.control = problem, method, control
        self.rtol, self.atol = rtol, atol
        self.stages, self.y = _stages.of(method), problem.y0
        t = problem.t.double()
        t = t if t.dim() == 2 else t.unsqueeze(1).expand(-1, len(self.y))
        self.t0, span = t[0], (t[-1] - t[0]).detach()
        self.sign = torch.where(span < 0, -1.0, 1.0)
        self.arrival = (t - t[0]) * self.sign
        self.time = torch.zeros_like(span)
        self.reached = (self.arrival <= 0).sum(0)
        done = self.reached == len(t)
        self.status = torch.where(done, int(Status.OK), _RUNNING)
        self.dense = _control.dense_matrix(method, self.y.device)
        self.coefficients = _stages.coefficients(method, torch.float64, self.y.device)
        self.f = self._field(self.time, self.y)
        self.ratio = torch.zeros_like(self.time)
        with torch.no_grad():
            self._begin()
        self.starts = [self.y] * len(t)
        self.made: list[Any] = []
        if self.arrival.requires_grad:  # where no time has passed, it has a derivative all the same
            passed = torch.where(self.arrival <= 0, self.arrival * self.sign, 0.0).unsqueeze(2)
            steps = passed.to(problem.dtype)
            self.starts = [runge_kutta_stage(self.y, (self.f,), step) for step in steps]

    def _begin(self) -> None:
        """Check the times, and choose the first steps."""
        check_rows(self.arrival)
        finite = (self.y + self.f).isfinite().reshape(len(self.y), -1).all(1)
        bad = ~finite & (self.status == _RUNNING)
        self.status = torch.where(bad, int(Status.NON_FINITE), self.status)
        self.under_way = on_host((self.status == _RUNNING).any())
        if self.control.first_step is not None:
            self.h = torch.full_like(self.time, self.control.first_step).nan_to_num(0.0)
            return
        h = _control.first_step(
            self.problem.func, self._wide(self.t0.to(self.problem.dtype)), self.y, self.f,
            self.method.order, self.rtol, self.atol, _row_rms, self._wide(self.sign.to(self.problem.dtype)),
        )  # fmt: skip
        self.h = h.flatten().double().nan_to_num(0.0)

    def advance(self) -> None:
        """One step of all rows that are under way."""
        self.h = self.h.clamp(self.control.min_step, self.control.max_step)
        self._stop_where_stuck()
        running = self.status == _RUNNING
        h = torch.where(running, self.h, 0.0)
        k, y1, self.ratio = self._evaluated(h)
        accepted = running & (self.ratio <= 1)
        if self.control.min_step > 0:
            accepted = accepted | self._shortest(running, h)
        time = torch.where(accepted, self.time + h, self.time)
        reached = torch.where(accepted, (self.arrival <= time).sum(0), self.reached)
        self.status = torch.where(reached == len(self.arrival), int(Status.OK), self.status)
        self.under_way, rejected, most = self._summary(running & ~accepted, reached)
        if rejected and torch.is_grad_enabled():  # no derivatives through states that are dropped
            h = torch.where(accepted, h, 0.0)
            k, y1, _ = self._evaluated(h)
        for later in range(most):
            self._output(self.reached + later, reached, h, k)
        self.y = torch.where(self._wide(accepted), y1, self.y)
        self.f = torch.where(self._wide(accepted), k[-1], self.f)
        self.h, self.time, self.reached = self.h * self._factor(), time, reached

    def _shortest(self, running, h):
        """Where the step cannot be shorter, and is taken whatever its error, if that is finite."""
        shortest, finite = running & (h <= self.control.min_step), self.ratio.isfinite()
        self.status = torch.where(shortest & ~finite, int(Status.NON_FINITE), self.status)
        return shortest & finite

    def _stop_where_stuck(self) -> None:
        start = (self.t0 + self.sign * self.time).detach()
        stuck = (self.status == _RUNNING) & (start + self.sign * self.h == start)
        reason = torch.where(self.ratio.isfinite(), Status.STEP_UNDERFLOW, Status.NON_FINITE)
        self.status = torch.where(stuck, reason, self.status)

    def _evaluated(self, h):
        """The stages, the states after the step, and errors in units of the tolerance."""
        signed = (self.sign * h).unsqueeze(1)
        weights = (signed * self.coefficients).to(self.problem.dtype).split(self.stages.sizes, 1)
        times = [self._seen(self.time + c * h) for c in self.method.c[1:]]
        k, y1 = _stages.evaluate(self.problem.func, self.y, self.f, times, self.stages, weights)
        used = [k[j] for j in self.stages.error]
        sums = runge_kutta_error(self.y, y1, used, weights[-1], self.rtol, self.atol)
        width = self.y[0].numel()
        return k, y1, (sums / width).sqrt().double()

    def _summary(self, rejected, reached):
        """Whether rows are under way still, any step was rejected; the most outputs a row reached."""
        under_way = (self.status == _RUNNING).any()
        return on_host(torch.stack((under_way, rejected.any(), (reached - self.reached).amax())))

    def _output(self, number, reached, h, k):
        """An output of each row, of the number (N,) that it has, if the step just made reached it."""
        (rows,) = (number < reached).nonzero(as_tuple=True)
        number, h = number[rows], h[rows]
        theta = (self.arrival[number, rows] - self.time[rows]) / h
        weights = _control.dense_weights(self.dense, (self.sign[rows] * h).unsqueeze(1), theta)
        state = runge_kutta_stage(self.y[rows], [k_j[rows] for k_j in k], weights.to(self.problem.dtype))
        self.made.append((number * len(self.y) + rows, state))

    def _factor(self) -> Any:
        """By how much the next steps are longer."""
        control, ratio = self.control, self.ratio
        factor = (control.safety / ratio ** (1 / self.method.order)).clamp(max=control.ifactor)
        factor = torch.maximum(factor, torch.where(ratio < 1, 1.0, control.dfactor))
        return torch.where(ratio.isfinite(), factor, control.dfactor)

    def finished(self) -> Any:
        """The outputs; a failure is reported, and its outputs are NaN."""
        self.status = torch.where(self.status == _RUNNING, Status.STEP_LIMIT, self.status)
        states = torch.stack(self.starts)
        if self.made:
            places, made = map(torch.cat, zip(*self.made))
            states = states.flatten(0, 1).index_copy(0, places, made).view_as(states)
        if bool((self.status != Status.OK).any()):
            fail(self.method.name, self.status, self.control.on_failure)
            numbers = torch.arange(len(states), device=states.device).unsqueeze(1)
            missed = (self.reached <= numbers).view(*states.shape[:2], *(1,) * (self.y.dim() - 1))
            states = torch.where(missed, torch.nan, states)
        return states

    def _seen(self, time):
        """Times as func sees them, (N, 1, …)."""
        return self._wide((self.t0 + self.sign * time).to(self.problem.dtype))

    def _field(self, time, y):
        return self.problem.func(self._seen(time), y)

    def _wide(self, rows):
        return rows.view(-1, *(1,) * (self.y.dim() - 1))


def _row_rms(tensor):
    """Root mean square of each row, (N, 1, …)."""
    squares = _control.wide(tensor.abs()).square().reshape(len(tensor), -1)
    return squares.mean(1).sqrt().view(-1, *(1,) * (tensor.dim() - 1))

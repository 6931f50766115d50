"""`odeint`: torchdiffeq's call, on fused stages."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from flowkern.ode import adaptive, fixed, per_sample
from flowkern.ode.control import Control
from flowkern.ode.problem import (
    CALLBACKS,
    Problem,
    broadcasts,
    check_monotonic,
    flattened,
    number,
    on_host,
    problem,
    unflattened,
)  # fmt: skip
from flowkern.ops._tableau import Tableau, tableau

_FIXED = ("step_size", "grid_constructor", "interp", "perturb", "on_failure", "per_sample")
_ADAPTIVE = (*Control._fields, "per_sample", "dtype")


def odeint(
    func: Callable[..., Any],
    y0: torch.Tensor | tuple[torch.Tensor, ...],
    t: torch.Tensor,
    *,
    rtol: float | torch.Tensor | Sequence[float | torch.Tensor] = 1e-7,
    atol: float | torch.Tensor | Sequence[float | torch.Tensor] = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, for the states at t.

    Args:
        func: (t, y) → dy/dt, like y; t is a scalar tensor of y's dtype. With tuples y and dy/dt
            are tuples. It leaves y as it is.
        y0: tensor of any shape, or a tuple of tensors; float32/float64, other dtypes more slowly.
        t: (T,) times that rise or fall, a tensor or a list. Fixed grids check their order only where
            they lie on the host.
        rtol, atol: tolerances of adaptive methods, numbers or tensors like y0; for tuples also one
            for each part.
        method: "euler", "midpoint", "heun2", "heun3", "rk4" (the 3/8 rule), "rk4_classic", on a
            fixed grid; "adaptive_heun", "fehlberg2", "bosh3", "dopri5" (default), "tsit5", "dopri8",
            adaptive.
        options: for fixed grids step_size, grid_constructor, interp ("linear", "cubic"), perturb, and
            on_failure ("raise", "warn": whether the end is finite is read back; default None); for
            adaptive methods those of `flowkern.ode.control.Control`. For both per_sample: every row
            of y0 (N, …) has steps of its own, func gets t (N, 1, …), and t may be (T, N).

    Returns:
        (T, …) like y0, differentiable in y0, t and what func uses; a tuple for a tuple. Outputs of adaptive methods
        between steps are of order 4 (README), of dopri8 5: name times in the option step_t for its order there.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or value.
        NotImplementedError: event_fn is given, or a method of torchdiffeq that is not here.
        SolverError: a solve did not reach the last time; its `status` says why.

    Source: Chen, torchdiffeq 0.2.5; Hairer, Nørsett, Wanner, Solving Ordinary Differential
    Equations I (1993).

    Example:
        >>> import torch, flowkern
        >>> y = flowkern.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), method="dopri5")
        >>> y[-1]
        tensor([0.3679])
    """
    if event_fn is not None:
        raise NotImplementedError("event_fn: events are not supported; use torchdiffeq.odeint")
    solver = Solver.of(func, y0, t, rtol, atol, method, options)
    return solver.parts(solver.states())


class Solver(NamedTuple):
    """A call with its arguments checked."""

    task: Problem
    method: Tableau
    options: dict
    rtol: object
    atol: object
    per_sample: bool

    @classmethod
    def of(cls, func, y0, t, rtol, atol, method, options):
        method = tableau("dopri5" if method is None else method)
        if not callable(func):
            raise TypeError(f"func: expected a function (t, y) → dy/dt, got {type(func).__name__}")
        options = known_options("options", options, method, 4)
        by_sample = options.pop("per_sample", False)
        if not isinstance(by_sample, (bool, int, type(None))):
            raise TypeError(f"options: per_sample: expected True or False, got {by_sample!r}")
        task = problem(func, y0, t, by_sample)
        known = () if by_sample else ("callback_step",) if method.b_error is None else CALLBACKS
        if ignored := [name for name in task.callbacks if name not in known]:
            warnings.warn(f"func: {', '.join(ignored)} is not called by {method.name} here", stacklevel=3)
        tolerances = tolerance("rtol", rtol, task), tolerance("atol", atol, task)
        return cls(task, method, options, *tolerances, bool(by_sample))

    def states(self) -> Any:
        """The states at all times, (T, …)."""
        task = self.task
        if self.method.b_error is None:
            return fixed.solve(task, self.method, self.per_sample, **self.options)
        if task.y0.numel() == 0:  # nothing to control; the graph reaches what func uses all the same
            return fixed.solve(task, self.method, self.per_sample)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise NotImplementedError(
                f"method: the steps of {self.method.name} depend on values, and would be kept for all others in a "
                "trace or an exported program; use a fixed grid, such as method='rk4' with a step_size"
            )
        # Steps depend on numbers: there is no graph of them.
        adapted = torch.compiler.disable(_adapted) if torch.compiler.is_compiling() else _adapted
        return adapted(self)

    def parts(self, states):
        """The states as the caller has them."""
        return unflattened(states, self.task.shapes, states.shape[:1])


def _adapted(solver):
    """The states of an adaptive solve, whose steps are those of the batch or of each sample."""
    task = solver.task
    if task.y0.is_meta:
        raise ValueError("y0: adaptive steps depend on values, which the meta device has not")
    for name in ("rtol", "atol"):
        check_tolerance(name, getattr(solver, name))
    if not solver.per_sample and task.times is None:
        task = task._replace(times=tuple(on_host(task.t)))
        check_monotonic(task.times)
    solve = per_sample.solve if solver.per_sample else adaptive.solve
    return solve(task, solver.method, solver.rtol, solver.atol, solver.options)


def known_options(argument, options, method, level):
    """The options that the method has; others are named in a warning at that level of the stack."""
    if not isinstance(options, (dict, type(None))):
        raise TypeError(f"{argument}: expected a dict, got {type(options).__name__}")
    options = dict(options or {})
    known = _FIXED if method.b_error is None else _ADAPTIVE
    if strange := [str(name) for name in options if name not in known]:
        warnings.warn(f"{argument}: {method.name} has none called {', '.join(strange)}", stacklevel=level)
    options = {name: value for name, value in options.items() if name in known}
    if options.pop("dtype", torch.float64) != torch.float64:  # torchdiffeq's, of the times
        warnings.warn(f"{argument}: dtype: times are kept in torch.float64", stacklevel=level)
    return options


def tolerance(name, value, task):
    """A number, or a tensor like the flat state."""
    if isinstance(value, (tuple, list)):
        if task.shapes is None or len(value) != len(task.shapes):
            raise ValueError(f"{name}: expected a number or one for each part of y0, got {value}")
        try:
            parts = [torch.as_tensor(v).expand(shape) for v, shape in zip(value, task.shapes)]
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{name}: expected a number for each part of y0, or a tensor like it, got {value}"
            ) from None
        value = flattened(parts, per_sample=task.y0.dim() == 2)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(f"{name}: cannot require gradients")
    if not isinstance(value, torch.Tensor) or value.numel() == 1:
        value = number(name, value)
        check_tolerance(name, value)
        return value
    if not broadcasts(value.shape, task.y0.shape):
        wanted = "one for each part of y0" if task.shapes else f"a tensor like y0, {tuple(task.y0.shape)}"
        raise ValueError(f"{name}: expected a number or {wanted}, got shape {tuple(value.shape)}")
    return value.to(task.y0.device, task.dtype).expand(task.y0.shape)


def check_tolerance(name, values):
    """Raise unless a tolerance is finite, 0 or more; a tensor is read from its device."""
    if isinstance(values, torch.Tensor):
        bad = values[~((values >= 0) & values.isfinite())][:1].tolist()
    else:
        bad = [] if 0 <= values < math.inf else [values]
    if bad:
        raise ValueError(f"{name}: expected a finite number, 0 or more, got {bad[0]}")

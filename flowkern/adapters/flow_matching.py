"""The sampler of flow_matching 1.0 and its likelihood, where the velocity model is a dense network.

A call names its method. One of fixed steps keeps these, and with them its numbers. An adaptive one
takes the steps that the caller of `accelerate` names, and calls torchdiffeq if none are named.
"""

import functools
import inspect
import re

import torch

from flowkern.adapters._ode import (
    OdeError,
    between,
    described,
    field_of,
    host_times,
    known_of,
    largest,
    solution,
)
from flowkern.adapters._plan import Plan, overridden, qualified_name
from flowkern.ode import fixed
from flowkern.ode.problem import problem
from flowkern.ops._arguments import in_dtype
from flowkern.ops._neural_ode import Solution

__all__ = ["HANDLES", "ode_error", "plan", "solves"]

HANDLES = "flow_matching: ODESolver, if its velocity model is a dense network of x and t"
_PACKAGE = re.compile(r"(?:.*\.)?flow_matching\.")
_LAYER = "solver.ode_solver.ODESolver"
_FIXED = ("euler", "midpoint", "heun2", "rk4")
_ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")


class Sampler:
    """What is known of an ODESolver.

    Args:
        field: the `Field` of its velocity model.
        ode: options of `ops.neural_ode` for adaptive methods, or None.
    """

    def __init__(self, field, ode=None):
        self.field, self.ode = field, ode

    @property
    def note(self):
        """What explain says of the steps."""
        if self.ode is None:
            return "adaptive methods run in torchdiffeq, because no ode=… was given"
        return f"with an adaptive method, {described(self.ode)}"

    def left(self, module):
        """Why flow_matching computes the module as it is now; None if it does not."""
        return self.field.left(module.velocity_model)

    def takes(self, module, call, x):
        """Whether a call, its arguments by name, is solved here."""
        t = call["time_grid"]
        if call.get("model_extras") or host_times(t) is None or not self.field.fits(module.velocity_model, x):
            return False
        if call["method"] in _ADAPTIVE:
            return self.ode is not None and call["step_size"] is None
        return call["method"] in _FIXED and (call["step_size"] is None or call["step_size"] > 0)

    def solve(self, module, call, x, trace=None):
        """The `Solution` at the times of the call."""
        solve = functools.partial(self.field.solve, module.velocity_model, x, trace=trace)
        t = call["time_grid"].to(x)
        if call["method"] in _ADAPTIVE:
            return solve(t, **between(t.tolist(), self.ode))
        solve = functools.partial(solve, method=call["method"], on_failure=(self.ode or {}).get("on_failure"))
        if call["step_size"] is None:
            return solve(t)
        grid, outputs = fixed.grid_of(problem(None, x, t), call["step_size"])
        found = solve(grid)
        return Solution(*(s if s is None else _at(t, grid, outputs, s) for s in found))


def _at(t, grid, outputs, states):
    """The states at times t, between those of the grid on a line, as torchdiffeq has it."""
    found = [states[0]]
    for i, here in enumerate(outputs):
        for j, exact in here:
            slope = (t[j] - grid[i]) / (grid[i + 1] - grid[i])
            found.append(states[i + 1] if exact else torch.lerp(states[i], states[i + 1], slope))
    return torch.stack(found)


# The solver's methods.


def _sample(sampler, module, *args, **kwargs):
    """x at the last time, or at all times if return_intermediates."""
    call = _arguments(type(module).sample, module, args, kwargs)
    if not sampler.takes(module, call, call["x_init"]):
        return type(module).sample(module, *args, **kwargs)
    with torch.set_grad_enabled(call["enable_grad"]):
        y = sampler.solve(module, call, call["x_init"]).y
    return y if call["return_intermediates"] else y[-1]


def _compute_likelihood(sampler, module, *args, **kwargs):
    """x at the last time (or all), and ln p of x_1."""
    call = _arguments(type(module).compute_likelihood, module, args, kwargs)
    x, t = call["x_1"], call["time_grid"]
    if not sampler.takes(module, call, x) or (t[0], t[-1]) != (1, 0):
        return type(module).compute_likelihood(module, *args, **kwargs)
    with torch.set_grad_enabled(call["enable_grad"]):
        trace = "exact" if call["exact_divergence"] else (torch.randn_like(x) < 0) * 2.0 - 1.0
        found = sampler.solve(module, call, x, trace)
    y = found.y if call["return_intermediates"] else found.y[-1]
    return y, call["log_p0"](found.y[-1]) + in_dtype(found.logabsdet[-1], x.dtype)


def _arguments(function, module, args, kwargs):
    bound = inspect.signature(function).bind(module, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


# Whether a solver is accelerated.


def plan(module):
    """The `Plan` for an ODESolver."""
    names = (qualified_name(_PACKAGE, cls) for cls in type(module).__mro__)
    if next(filter(None, names), None) != _LAYER:
        return None
    methods = {"sample": _sample, "compute_likelihood": _compute_likelihood}
    field = overridden(module, methods, functools.partial(qualified_name, _PACKAGE)) or field_of(
        module.velocity_model, _velocity
    )
    if isinstance(field, str):
        return Plan({}, field)

    def replaced(ode=None):
        sampler = Sampler(field, ode)
        return {name: functools.partial(method, sampler) for name, method in methods.items()}

    return Plan(replaced(), by_ode=replaced)


def _velocity(model, t, x):
    return model(x=x, t=t)


# What fixed steps change.


def solves(model):
    """Whether the model is an ODESolver that is solved by fixed steps."""
    known = known_of(model, "sample", Sampler)
    return known is not None and known.ode is not None


def ode_error(solver, x_1, method="dopri5", atol=1e-5, rtol=1e-5):
    """As `adapters.ode_error` for an ODESolver, from data to noise; its own solve by the arguments after x_1."""
    known = known_of(solver, "sample", Sampler)
    call = dict(
        x_1=x_1, log_p0=lambda x: 0.0, step_size=None, method=method, atol=atol, rtol=rtol,
        exact_divergence=True,
    )  # fmt: skip
    t = torch.tensor([1.0, 0.0], device=x_1.device)
    exact = solution(known.field, solver.velocity_model, x_1, t, known.ode)
    wanted = exact.y[-1], exact.logabsdet[-1]
    ours, own = solver.compute_likelihood(**call), type(solver).compute_likelihood(solver, **call)
    return OdeError(*map(largest, (*ours, *own), (*wanted, *wanted)))

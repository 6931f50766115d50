"""torchdyn's NeuralODE, by which torchcfm's users sample, where the field is a dense network."""

import functools
import re

import torch

from flowkern.adapters._ode import (
    ADAPTIVE,
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

__all__ = ["HANDLES", "ode_error", "plan", "solves"]

HANDLES = "torchdyn: NeuralODE, if asked by ode=… and its field is a dense network of x and t"
_PACKAGE = re.compile(r"(?:.*\.)?torchdyn\.")
_LAYER = "core.neuralde.NeuralODE"


class Solver:
    """The steps that take the place of a NeuralODE's own.

    Args:
        field: the `Field` of its vector field.
        ode: options of `ops.neural_ode`.
    """

    def __init__(self, field, ode):
        self.field, self.ode = field, ode

    @property
    def note(self):
        """What explain says of the steps."""
        return described(self.ode)

    def left(self, module):
        """Why torchdyn computes the module as it is now; None if it does not."""
        if module.order != 1 or module.integral_loss is not None:
            return "it has an order above 1 or an integral loss"
        return self.field.left(module.vf)

    def __call__(self, module, x, t):
        """x(t) (T, N, D); None where torchdyn must compute it."""
        if not isinstance(x, torch.Tensor) or self.left(module) or not self.field.fits(module.vf, x):
            return None
        times = host_times(t)
        return None if times is None else self.field.solve(module.vf, x, t, **between(times, self.ode)).y


def _trajectory(solver, module, x, t_span):
    """The states (T, N, D) at t_span."""
    found = solver(module, x, t_span.to(x))
    return type(module).trajectory(module, x, t_span) if found is None else found


def _forward(solver, module, x, t_span=None, save_at=(), args={}):  # noqa: B006  (as torchdyn has it)
    """t_span and the states there, or the states alone."""
    t = t_span if t_span is not None else module.t_span
    t = torch.linspace(0, 1, 2) if t is None else t
    found = None if len(save_at) or args else solver(module, x, t.to(x))
    if found is None:
        return type(module).forward(module, x, t_span, save_at, args)
    return (t.to(x), found) if module.return_t_eval else found


# Whether a NeuralODE is accelerated.


def plan(module):
    """The `Plan` for a NeuralODE: what it takes to be solved by steps that the caller names."""
    names = (qualified_name(_PACKAGE, cls) for cls in type(module).__mro__)
    if next(filter(None, names), None) != _LAYER:
        return None
    methods = {"trajectory": _trajectory, "forward": _forward}
    name = functools.partial(qualified_name, _PACKAGE)
    field = overridden(module, methods, name) or field_of(module.vf, _velocity)
    if isinstance(field, str):
        return Plan({}, field)

    def replaced(ode):
        return {name: functools.partial(method, Solver(field, ode)) for name, method in methods.items()}

    return Plan({}, ADAPTIVE, replaced)


def _velocity(field, t, x):
    return field(t, x)


# What fixed steps change.


def solves(model):
    """Whether the model is a NeuralODE that is solved by fixed steps."""
    return known_of(model, "trajectory", Solver) is not None


def ode_error(node, x, t_span):
    """As `adapters.ode_error` for a NeuralODE, of the states at t_span, without log-dets."""
    known = known_of(node, "trajectory", Solver)
    exact = solution(known.field, node.vf, x, t_span, known.ode).y
    own = type(node).trajectory(node, x, t_span)
    return OdeError(largest(node.trajectory(x, t_span), exact), None, largest(own, exact), None)

"""`accelerate(model)`: fused kernels inside models that other packages built, and the way back.

A layer is changed by putting `functools.partial(fused function, layer)` into its instance
dictionary, in front of the method of its class. A partial is copied and pickled together with the
layer that it names, so a deep copy or a loaded model runs on its own parameters. Class, parameters,
buffers and state_dict stay as they are.

Each library is a module with `plan(module) -> Plan | None` and `HANDLES`, a line for messages.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flowkern.adapters import (
    _nflows_program,
    _normflows_program,
    _zuko_program,
    flow_matching,
    freia,
    nflows,
    normflows,
    sbi,
    torchdyn,
    zuko,
)
from flowkern.adapters._held import named_modules
from flowkern.adapters._ode import OdeError
from flowkern.adapters._plan import one_thread
from flowkern.adapters._spline_functions import SplineFunctions, spline_functions
from flowkern.ops import FieldLayer, neural_ode

__all__ = [
    "Explanation",
    "Layer",
    "SplineFunctions",
    "accelerate",
    "explain",
    "ode_error",
    "restore",
    "spline_functions",
]

PEERS = (
    nflows,
    _nflows_program,
    zuko,
    _zuko_program,
    normflows,
    _normflows_program,
    freia,
    flow_matching,
    torchdyn,
    sbi,
)
_SOLVED = (zuko, flow_matching, torchdyn)
_REPLICATE = "_replicate_for_data_parallel"
_ODE = ("method", "steps", "gradient", "checkpoint", "on_failure")


def accelerate(model: Any, ode: dict[str, Any] | None = None, stacklevel: int = 1) -> Any:
    """`flowkern.accelerate` without its check; stacklevel: of the warning that nothing can be accelerated."""
    modules = [module for _, module in named_modules(model)]
    _check_ode(ode)
    if ode is not None:
        restore(model)  # layers that are solved by other steps already
    with one_thread():
        for module in reversed(modules):  # what is inside first: programs watch it
            _accelerate(module, ode)
    if not any(map(_replaced, modules)):
        warnings.warn(f"flowkern.accelerate: model is unchanged. {explain(model)}", stacklevel=stacklevel + 1)
    return model


def _accelerate(module, ode):
    replaced = _replaced(module)
    if replaced:
        _note(module, replaced)  # looks at its masks again
        return
    methods = _methods(module, ode)
    if methods:
        _replace(module, methods)


def restore(model: Any) -> Any:
    """Undo `accelerate(model)`: every layer computes by its own methods again.

    Args:
        model: as for `accelerate`.

    Returns:
        model.

    Raises:
        TypeError: model is no `torch.nn.Module` and holds none.

    Example:
        >>> import flowkern, zuko
        >>> flow = flowkern.accelerate(zuko.flows.NSF(features=3, transforms=1))
        >>> flowkern.restore(flow) is flow
        True
        >>> flowkern.explain(flow).replaced
        ()
    """
    for _, module in named_modules(model):
        for name in _replaced(module):
            del module.__dict__[name]
    return model


def explain(model: Any) -> "Explanation":
    """Tell which layers of `model` run on fused kernels, which could, which do not, and why.

    Args:
        model: as for `accelerate`.

    Returns:
        An `Explanation`; `print` shows it.

    Raises:
        TypeError: model is no `torch.nn.Module` and holds none.

    Example:
        >>> import flowkern, zuko
        >>> flow = zuko.flows.NSF(features=3, transforms=1)
        >>> len(flowkern.explain(flow).replaceable) > 0
        True
    """
    modules = named_modules(model)
    found: dict[str, list[Layer]] = {"replaced": [], "replaceable": [], "left": []}
    with one_thread():
        inside = _inside([module for _, module in modules])
        for name, module in modules:
            kind, note = _explained(module, inside)
            if kind:
                found[kind].append(Layer(name or "(the model)", type(module).__name__, note))
    return Explanation(type(model).__name__, **{kind: tuple(layers) for kind, layers in found.items()})


def _explained(module, inside):
    """In which list of an `Explanation` the module belongs, and the note of its `Layer`."""
    methods = _replaced(module)
    if methods:
        return "replaced", _note(module, methods)
    plan = _plan(module)
    if plan is None:
        return None, ""
    if id(module) in inside:
        return "replaced", "within the one call of what holds it"
    note = "; ".join(filter(None, (", ".join(plan.methods) or plan.reason, plan.remark)))
    return "replaceable" if plan.methods else "left", note


def _note(module, methods):
    """The replaced methods, how an equation is solved, and why the library computes at present, if so."""
    arguments = [a for name in methods for a in module.__dict__[name].args]
    known = next((a for a in arguments if hasattr(a, "left")), None)
    note = getattr(known, "note", "")
    left = known.left(module) if known else nflows.left(module)
    parts = (
        ", ".join(name for name in methods if name != _REPLICATE),
        note(module) if callable(note) else note,
        getattr(known, "remark", ""),
        left and f"at present computed by its own code: {left}",
    )
    return "; ".join(filter(None, parts))


def _inside(modules):
    """Those that run in one call with others, though none of their own methods is replaced."""
    return {
        inner
        for module in modules
        for name in _replaced(module)
        for known in module.__dict__[name].args[:1]
        if hasattr(known, "inside")
        for inner in known.inside(module)
    }


@torch.no_grad()
def ode_error(model: torch.nn.Module, x: torch.Tensor, *arguments: Any, **options: Any) -> OdeError:
    """How far fixed steps are from the solution, and how far the library's own solver is.

    The solution is one in float64: zuko's with a thousandth of its tolerances, or by dopri5 in sixteen times as
    many steps. Traces are exact in all of them.

    Args:
        model: what `accelerate(model, ode=…)` solves by fixed steps: a flow or lazy transform of zuko, an
            ODESolver of flow_matching or a NeuralODE of torchdyn.
        x: data (…, D) to compare at, at the first time of the solve.
        arguments, options: what else the solve takes: zuko's context c; flow_matching's method, atol and rtol,
            those of its own adaptive solve; torchdyn's t_span.

    Returns:
        An `OdeError`: the largest errors of the state and of the log-det, of fixed steps and of the library.

    Raises:
        ValueError: model is not solved by fixed steps.

    Example:
        >>> import flowkern, torch, zuko
        >>> flow = flowkern.accelerate(zuko.flows.CNF(2, hidden_features=(8,)), ode={"steps": 16})
        >>> flowkern.ode_error(flow, torch.randn(4, 2)).y < 1e-2
        True
    """
    for peer in _SOLVED:
        if isinstance(model, torch.nn.Module) and peer.solves(model):
            return peer.ode_error(model, x, *arguments, **options)
    raise ValueError("model: expected one accelerated by accelerate(model, ode=…)")


class Layer(NamedTuple):
    """One layer of an explained model; note names its replaced methods, or says why it is not accelerated."""

    name: str
    kind: str
    note: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: tuples of the layers that are accelerated, could be, and are not."""

    model: str
    replaced: tuple
    replaceable: tuple
    left: tuple

    def __str__(self):
        parts = (
            ("Accelerated", self.replaced),
            ("Could be accelerated", self.replaceable),
            ("Not accelerated", self.left),
        )
        blocks = [_block(title, layers) for title, layers in parts if layers]
        if not self.replaced and not self.replaceable:
            handled = "; ".join(peer.HANDLES for peer in PEERS if peer.HANDLES)
            blocks.insert(0, f"Nothing to accelerate in {self.model}: flowkern handles {handled}.")
        return "\n".join(blocks)


_MOST_ALIKE = 3  # lines of one class and one note, before they are one line


def _block(title, layers):
    rows = [row for alike in _alike(layers) for row in _rows(alike)]
    names, kinds = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = (f"  {name:{names}}  {kind:{kinds}}  {note}" for name, kind, note in rows)
    return "\n".join((f"{title} ({len(layers)}):", *lines))


def _alike(layers):
    """Lists of the layers that have one class and one note, in the order of the first of each."""
    groups = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.note), []).append(layer)
    return groups.values()


def _rows(alike):
    """Each layer, or one line for many: the first, how many there are, and the last."""
    if len(alike) <= _MOST_ALIKE:
        return alike
    first, *_, last = alike
    return [Layer(f"{first.name} … {last.name} ({len(alike)})", first.kind, first.note)]


def _check_ode(ode):
    if ode is None:
        return
    if not isinstance(ode, dict) or "steps" not in ode or not ode.keys() <= set(_ODE):
        raise TypeError(f"ode: expected a dictionary of steps and other of {', '.join(_ODE)}, got {ode!r}")
    one = torch.ones(1, 1, device="cpu")
    neural_ode(one, [FieldLayer(one)], one[0], **ode)  # raises what is wrong with the options


def _methods(module, ode):
    """The methods that take the place of the module's own; none if it is not accelerated."""
    plan = _plan(module)
    if plan is None:
        return {}
    return plan.by_ode(ode) if plan.by_ode and ode is not None else plan.methods


def _plan(module):
    return next(filter(None, (peer.plan(module) for peer in PEERS)), None)


def _replace(module, methods):
    for name, function in methods.items():
        module.__dict__[name] = functools.partial(function, module)
    module.__dict__[_REPLICATE] = functools.partial(_replicate, module)


def _replicate(module):
    """A replica for `torch.nn.DataParallel`, whose copy of the dictionary must name the replica."""
    replica = type(module)._replicate_for_data_parallel(module)
    for name in _replaced(module):
        method = replica.__dict__[name]
        replica.__dict__[name] = functools.partial(method.func, *method.args[:-1], replica)
    return replica


def _replaced(module):
    """Names of the methods that `accelerate` put into the module's dictionary."""
    return [name for name, value in module.__dict__.items() if _is_ours(value)]


def _is_ours(value):
    if not isinstance(value, functools.partial):
        return False
    return (getattr(value.func, "__module__", None) or "").startswith(__name__)

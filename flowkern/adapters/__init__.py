"""`accelerate(model)`: fused kernels inside models that other packages built, and the way back.

A layer is changed by putting `functools.partial(fused function, layer)` into its instance
dictionary, in front of the method of its class. A partial is copied and pickled together with the
layer that it names, so a deep copy or a loaded model runs on its own parameters. Class, parameters,
buffers and state_dict stay as they are.

Each peer is a module with `plan(module) -> Plan | None` and `HANDLES`, a line for messages.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flowkern.adapters import nflows, normflows, zuko
from flowkern.adapters._masked import Inspection

__all__ = ["Explanation", "Layer", "accelerate", "explain", "restore"]

PEERS = (nflows, zuko, normflows)
_REPLICATE = "_replicate_for_data_parallel"


def accelerate(model):
    """Let fused kernels compute the layers of `model` that flowkern knows, with the same numbers.

    In place and at any depth. Each layer is first compared with its own formulas on a few points,
    and left as it is if they differ. Call it again after adding layers. A model with nothing to
    accelerate stays as it is, with a warning. `explain(model)` tells what was done.

    Args:
        model: any `torch.nn.Module`.

    Returns:
        model.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    _check(model)
    for module in model.modules():
        if not _replaced(module):
            plan = _plan(module)
            if plan is not None and plan.methods:
                _replace(module, plan.methods)
    if not any(_replaced(module) for module in model.modules()):
        warnings.warn(f"flowkern.accelerate: model is unchanged. {explain(model)}", stacklevel=2)
    return model


def restore(model):
    """Undo `accelerate(model)`: every layer computes by its own methods again.

    Args:
        model: any `torch.nn.Module`.

    Returns:
        model.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    _check(model)
    for module in model.modules():
        for name in _replaced(module):
            del module.__dict__[name]
    return model


def explain(model):
    """Tell which layers of `model` run on fused kernels, which could, which do not, and why.

    Args:
        model: any `torch.nn.Module`.

    Returns:
        An `Explanation`; `print` shows it.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    _check(model)
    replaced, replaceable, left = [], [], []
    for name, module in model.named_modules():
        layer = functools.partial(Layer, name or "(the model)", type(module).__name__)
        methods = _replaced(module)
        plan = None if methods else _plan(module)
        if methods:
            note = ", ".join(name for name in methods if name != _REPLICATE)
            replaced.append(layer(note + _at_present(module, methods)))
        elif plan is not None:
            note = ", ".join(plan.methods) or plan.reason
            (replaceable if plan.methods else left).append(layer(note))
    return Explanation(type(model).__name__, tuple(replaced), tuple(replaceable), tuple(left))


def _at_present(module, methods):
    """Why the peer computes an accelerated layer as it is now, for a note; empty if it does not."""
    arguments = [a for name in methods for a in module.__dict__[name].args]
    inspection = next((a for a in arguments if isinstance(a, Inspection)), None)
    reason = inspection and inspection.left(module)
    return f"; at present left to its own code: {reason}" if reason else ""


class Layer(NamedTuple):
    """One layer of an explained model; note names its replaced methods, or says why it is left."""

    name: str
    kind: str
    note: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: tuples of the layers that are accelerated, could be, and are left."""

    model: str
    replaced: tuple
    replaceable: tuple
    left: tuple

    def __str__(self):
        parts = (
            ("Accelerated", self.replaced),
            ("Could be accelerated", self.replaceable),
            ("Left as they are", self.left),
        )
        blocks = [_block(title, layers) for title, layers in parts if layers]
        if not self.replaced and not self.replaceable:
            handled = "; ".join(peer.HANDLES for peer in PEERS)
            blocks.insert(0, f"Nothing to accelerate in {self.model}: flowkern handles {handled}.")
        return "\n".join(blocks)


def _block(title, layers):
    names, kinds = (max(len(layer[i]) for layer in layers) for i in (0, 1))
    lines = (f"  {name:{names}}  {kind:{kinds}}  {note}" for name, kind, note in layers)
    return "\n".join((f"{title} ({len(layers)}):", *lines))


def _check(model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


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
    return getattr(value.func, "__module__", "").startswith(__name__)

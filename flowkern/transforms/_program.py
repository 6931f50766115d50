"""`Compose` in as few calls as it can: its transforms as parts of a program of `flowkern.programs`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from flowkern import programs
from flowkern.nn import MADE, MLP, ResidualNet
from flowkern.ops import Activation
from flowkern.programs import (
    NO_TERM,
    Found,
    Fusion,
    hooked,
    layer,
    missing,
    on_rows,
    pieces,
    run,
    slots,
    why,
)  # fmt: skip

_WATCHED = frozenset(("order", "index", "identity", "permutation", "initialized"))


# The calls.


def evaluate(module: Any, x: torch.Tensor, context: Any, inverse: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """y and log-det of a `Compose`, or None where its transforms must compute them one by one."""
    found: Any = _found(module, "transform", _transform, x)
    found = found and found[context is not None]
    if not found:
        return None
    if len(found) == 1:
        return on_rows(found[0], x, context, inverse)
    return run(found, _call, x, context, inverse) if x.dim() == 2 else None


def log_normal(module, x, context):
    """log N(f(x); 0, I) + log|det ∂f/∂x| of a `Compose` f, or None as for `evaluate`."""
    found: Any = None if hooked([module]) else _found(module, "density", _density, x)
    found = found and found[context is not None]
    result = found and on_rows(found[0], x, context, False)
    return result and result[1]


def _found(
    module: Any, name: str, inspect: Callable, x: torch.Tensor
) -> tuple[list[Any] | None, list[Any] | None] | None:
    """What is known of the module for one of the two calls."""
    known = module.__dict__.setdefault("_fusion", {})
    if name not in known:
        known[name] = Fusion(inspect)
    result = programs.known(known[name], module, x)
    return result if isinstance(result, tuple) else None


def _call(
    module: Any, inverse: bool, x: torch.Tensor, context: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return module.inverse(x, context) if inverse else module(x, context)


# What was found of the modules.


def _transform(module: Any) -> Found:
    return _inspected(module, None, lambda found: any(piece.fused for piece in found))


def _density(module: Any) -> Found:
    return _inspected(module, "normal", lambda found: len(found) == 1 and found[0].fused)


def _inspected(module: Any, base: Any, is_of_use: Callable[..., Any]) -> Found:
    leaves = list(_leaves(module, False))
    variants = [
        pieces([(leaf, _part(leaf[0], with_context)) for leaf in leaves], base) for with_context in (False, True)
    ]
    result = tuple(found if is_of_use(found) else None for found in variants)
    strange = {id(inner) for leaf, _ in leaves if not _is_own(leaf) for inner in leaf.modules()}
    modules = [inner for inner in module.modules() if id(inner) not in strange]
    places = [(m._buffers, key) for m in modules for key in m._buffers if key in _WATCHED]
    return Found(result if any(result) else why(variants), modules, (*places, *missing(modules)))


def _leaves(module: Any, inverted: bool) -> Iterator:
    """(transform, whether it is inverted) of all transforms in a container, in order."""
    inner = module.contained() if _is_own(module) and hasattr(module, "contained") else None
    if inner is None:
        yield module, inverted
        return
    for transform, turned in reversed(inner) if inverted else inner:
        if hasattr(transform, "contained") and hooked([transform]):
            yield transform, inverted != turned
        else:
            yield from _leaves(transform, inverted != turned)


def _is_own(module: Any) -> bool:
    return type(module).__module__.startswith("flowkern.transforms.")


def _part(module: Any, with_context: bool) -> Any:
    """The `Part` of a transform, or why it has none."""
    if not _is_own(module) or "forward" in module.__dict__ or "inverse" in module.__dict__:
        return "it is none of flowkern's own"
    return "it has hooks" if hooked(module.modules()) else module.part(with_context)


# Conditioners.


def conditioner(net: MLP, with_context: bool) -> str | tuple[list[tuple[Any, tuple[Any, ...]]], int]:
    """([`layer`], how many features of the context) of an MLP or a ResidualNet, or why there are none."""
    if type(net) not in (MLP, ResidualNet) or "forward" in net.__dict__:
        return f"its conditioner is {type(net).__name__}"
    first, context = _input(net.input, with_context, "relu")
    if first is None:
        return "its conditioner is given no features, or no context"
    if isinstance(net, MLP):
        return _in_a_row([first, *(layer(slots(linear), activation="relu") for linear in net.layers)]), context
    layers = [first]
    for block in net.blocks:
        begin = len(layers) - 1
        layers.append(layer(slots(block[1]), activation="relu"))
        layers.append(layer(slots(block[3]), activation="relu", skip=begin))
    return [*layers, layer(slots(net.output))], context


def made(net, with_context):
    """As `conditioner`, of a MADE."""
    if type(net) is not MADE or "forward" in net.__dict__:
        return f"its conditioner is {type(net).__name__}"
    first, context = _input(net.input, with_context, net.activation)
    if first is None:
        return "its conditioner takes another context"
    layers = [first]
    for linear in net.hidden:
        skip = len(layers) - 2 if net.residual and len(layers) % 2 == 0 else None
        layers.append(layer(slots(linear), activation=net.activation, skip=skip))
    return _in_a_row(layers), context


def _in_a_row(layers: Sequence[tuple]) -> list[tuple]:
    """The layers, the last without an activation."""
    spec, tensors = layers[-1]
    return [*layers[:-1], (spec._replace(activation="identity"), tensors)]


def _input(first: Any, with_context: bool, activation: Activation | str) -> tuple[tuple[Any, ...] | None, int]:
    """The first `layer`, and how many features of the context it reads; None where these do not fit."""
    context = first.context_features
    if first.weight is None or with_context != bool(context):
        return None, 0
    term = ("identity", (first._parameters, "context_weight"), None) if context else NO_TERM
    return layer(slots(first), term, activation=activation), context

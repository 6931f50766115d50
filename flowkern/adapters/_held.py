"""The modules of a model: its own, or those that an object holds which is no module itself, as sbi's posteriors."""

import types

import torch
from torch import nn

_LEAVES = (torch.Tensor, str, bytes, int, float, complex, type, types.ModuleType, types.FunctionType, types.MethodType)
_CONTAINERS = (dict, list, tuple, set, frozenset)


def named_modules(model):
    """[(name, module)] of all modules in the model, each once; an object's names begin with the attribute.

    Raises:
        TypeError: model is no module and holds none.
    """
    seen = set()
    return [pair for name, root in roots(model) for pair in root.named_modules(memo=seen, prefix=name)]


def roots(model):
    """[(name, module)] of the outermost modules: the model itself, or those that it holds.

    Raises:
        TypeError: there are none.
    """
    if isinstance(model, nn.Module):
        return [("", model)]
    if isinstance(model, (torch.distributions.Distribution, torch.distributions.Transform)):
        raise TypeError(
            f"model: expected a torch.nn.Module or an object that holds one, got {type(model).__name__}, which a flow "
            "has made already: pass the flow, and make it again"
        )
    found = _held(model)
    if not found:
        got = type(model).__name__
        raise TypeError(f"model: expected a torch.nn.Module or an object that holds one, got {got}, which holds none")
    return found


def _held(model):
    """As `roots`, breadth first, so that each module has its shortest name."""
    found, seen, layer = [], {id(model): model}, [("", model)]
    while layer:
        inner = [(name, value) for outer, one in layer for name, value in _inside(outer, one)]
        layer = []
        for name, value in inner:
            if id(value) in seen:
                continue
            seen[id(value)] = value  # it stays alive, so that no other gets its id
            (found if isinstance(value, nn.Module) else layer).append((name, value))
    return found


def _inside(name, value):
    """(name, what it is) of all that an object or a container has, by its dictionary alone: no code of it runs."""
    if isinstance(value, _LEAVES):
        return []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, _CONTAINERS):
        items = enumerate(value)
    else:
        items = getattr(value, "__dict__", {}).items()
    prefix = f"{name}." if name else ""
    return [(f"{prefix}{key}", inner) for key, inner in list(items) if not isinstance(inner, _LEAVES)]

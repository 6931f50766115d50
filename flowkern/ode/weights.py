"""The weights a function of modules has at a call, for the backward, when others may be in their places."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from flowkern.ops._modules import held

_MISSING = object()


class Weights:
    """The parameters and buffers of the modules that func calls, as they are now.

    `torch.func.functional_call` puts tensors into a module for one call alone; the backward comes later.
    """

    def __init__(self, func):
        self.places = [place for module in _modules(func) for place in held(module)]

    def leaves(self, params, saved):
        """The tensors `saved` for `params`, without the graph of those that can be put in their places: one may
        depend on another, and counts by itself all the same."""
        placed = {id(tensor) for _, _, tensor in self.places}
        return [
            tensor.detach().requires_grad_() if id(param) in placed and not tensor.is_leaf else tensor
            for param, tensor in zip(params, saved)
        ]

    @contextlib.contextmanager
    def restored(self, params: Any, saved: Any) -> Iterator[Any]:
        """They are in their places again, `saved` for the tensors `params`."""
        wanted, changed = {id(param): tensor for param, tensor in zip(params, saved)}, []
        try:
            for owner, key, then in self.places:
                tensor, now = wanted.get(id(then), then), owner.get(key, _MISSING)
                if now is not tensor:
                    changed.append((owner, key, now))
                    owner[key] = tensor
            yield
        finally:
            for owner, key, now in changed:
                owner.pop(key) if now is _MISSING else owner.update({key: now})


def _modules(func):
    """The modules that func is, is a method of, or has in its closure or as arguments."""
    if isinstance(func, functools.partial):
        parts = (func.func, *func.args, *func.keywords.values())
        return [module for part in parts for module in _modules(part)]
    parts = (func, getattr(func, "__self__", None), *_closed_over(func))
    return [part for part in parts if isinstance(part, torch.nn.Module)]


def _closed_over(func: Any) -> Iterator[Any]:
    for cell in getattr(func, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            yield cell.cell_contents


def check_used(f, params, grads, others):
    """Raise if f has no gradient to one of its params, but one to a tensor of that shape which is none of them."""
    unused = {tuple(param.shape) for param, grad in zip(params, grads) if grad is None}
    known = {id(tensor) for tensor in (*params, *others)}
    for leaf in _leaves(f) if unused else ():
        if id(leaf) not in known and tuple(leaf.shape) in unused:
            raise RuntimeError(
                f"adjoint_params: func has no gradient to one of shape {tuple(leaf.shape)}, but uses another tensor "
                "like it, which is not among them; were weights replaced for the call alone?"
            )


def _leaves(f: Any) -> Iterator[Any]:
    """The leaves of the graph that f was computed by."""
    seen, nodes = set(), [f.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [next_node for next_node, _ in node.next_functions]
        if hasattr(node, "variable"):
            yield node.variable

"""What was found out about the structure of a module, and whether it is still so.

A `Snapshot` of all modules that matter is compared at every call, so that a change of any kind is seen:
it holds their attributes, not a list of those that matter.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

_OURS = frozenset(("forward", "inverse", "_log_prob", "log_prob", "_fusion", "_replicate_for_data_parallel"))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Snapshot:
    """All that a program was made from, but the parameters: classes, attributes, submodules and hooks
    of modules, and tensors such as masks.

    Args:
        root: the module whose methods were replaced; its own hooks fire before those.
        modules: all others.
        places: (dictionary, key) of tensors whose values matter, or of None.
        flags: places of tensors that a library writes to without torch counting it.
    """

    def __init__(self, root, modules, places, flags=()):
        self.root, self.attributes = weakref.ref(root), _attributes(root)  # or the two would keep each other
        self.modules = [module for module in modules if module is not root]
        self.types = [type(module) for module in self.modules]
        self.dicts = [module.__dict__ for module in self.modules]
        self.copies = [dict(held) for held in self.dicts]
        everyone = (root, *self.modules)
        self.holders = [m._modules for m in everyone if m._modules or isinstance(m, (nn.ModuleList, nn.Sequential))]
        self.held = [tuple(held.values()) for held in self.holders]
        hooks = [getattr(module, name) for module in self.modules for name in _HOOKS]
        self.without, self.with_hooks = [h for h in hooks if not h], [h for h in hooks if h]
        self.absent = [(held, key) for held, key in places if held[key] is None]
        tensors = [(held, key, held[key]) for held, key in places if held[key] is not None]
        self.tensors = [(held, key, tensor, tensor.detach().clone()) for held, key, tensor in tensors]
        self.counted = [tensor for *_, tensor in tensors if not tensor.is_inference()]
        self.versions = [tensor._version for tensor in self.counted]
        self.flags = [(held, key, bool(held[key])) for held, key in flags]

    def is_of(self, root):
        """Whether it is the root's, and nothing has changed."""
        try:
            return (
                self.root() is root
                and self.dicts == self.copies
                and _attributes(root) == self.attributes
                and [tuple(held.values()) for held in self.holders] == self.held
                and not any(self.without)
                and all(self.with_hooks)
                and [*map(type, self.modules)] == self.types
                and all([held[key] is None for held, key in self.absent])
                and all([held[key] is tensor for held, key, tensor, _ in self.tensors])
                and self._unwritten()
                and all([bool(held[key]) is value for held, key, value in self.flags])
            )
        except Exception:  # attributes of any kind are compared, and a comparison may fail
            return False

    def _unwritten(self):
        now = [tensor._version for tensor in self.counted]
        if now != self.versions or len(now) < len(self.tensors):
            if not all(torch.equal(tensor, before) for _, _, tensor, before in self.tensors):
                return False
            self.versions = now
        return True


def _attributes(module):
    return {key: value for key, value in module.__dict__.items() if key not in _OURS}


class Found(NamedTuple):
    """What an inspection found.

    result: as for `Fusion`.
    modules, places, flags: as for `Snapshot`.
    """

    result: Any
    modules: Sequence[nn.Module]
    places: Sequence[tuple] = ()
    flags: Sequence[tuple] = ()


class Fusion:
    """What is known of a module as it is now. Copies and pickles know nothing yet.

    Args:
        inspect: inspect(module) gives a `Found`, whose result is (pieces without a context, pieces with
            one), None where no program is in them, or why there is none at all.

    Attributes:
        least_rows: by whether the module is in training, the least of its segments' `least_rows`.
    """

    def __init__(self, inspect):
        self.inspect, self.states = inspect, ()
        self.least_rows: dict[bool, tuple] = {}

    def __reduce__(self):
        return Fusion, (self.inspect,)

    def __call__(self, module):
        """What `inspect` finds in the module as it is now."""
        states = self.states
        if states and states[0][0].is_of(module):
            return states[0][1]
        return self._again(module)

    def _again(self, module):
        """Training and evaluation are two states, so a few are kept."""
        known = (state for state in self.states if state[0].is_of(module))
        state = next(known, None) or _inspected(self.inspect, module)
        self.states = (state, *(s for s in self.states if s is not state))[:4]
        self.least_rows[module.training] = _least_rows(state[1])
        return state[1]

    def left(self, module):
        """Why the module is left to its own code as it is now; None if it is not."""
        result = self(module)
        return result if isinstance(result, str) else None

    def note(self, module):
        """How many transforms run in one call, and why others do not; all is looked at again."""
        self.states = ()
        names = {inner: name.rpartition(".")[2] for name, inner in module.named_modules()}
        return "; ".join(piece.note(names) for piece in self._pieces(module))

    def inside(self, module):
        """The modules that run in one call with others."""
        pieces = (piece for piece in self._pieces(module) if piece.fused)
        return {id(inner) for piece in pieces for leaf, _ in piece.transforms for inner in leaf.modules()}

    def _pieces(self, module):
        """The variant that has fewer pieces; the one with a context if both have the same number."""
        result = self(module)
        return [] if isinstance(result, str) else min(filter(None, reversed(result)), key=len)


def _least_rows(result):
    """The least of all pieces, without and with gradients; (0, 0) where there are none."""
    variants = () if isinstance(result, str) else filter(None, result)
    each = [piece.least_rows for pieces in variants for piece in pieces if piece.fused]
    return tuple(map(min, zip(*each))) if each else (0, 0)


def _inspected(inspect, module):
    """(`Snapshot`, result) of a module as it is now."""
    with torch.inference_mode(False), torch.no_grad():
        try:
            found = inspect(module)
        except Exception as error:  # it may hold anything, and is then left to its own code
            found = Found(f"it could not be inspected: {type(error).__name__}: {error}", module.modules())
        return Snapshot(module, found.modules, found.places, found.flags), found.result


def hooked(modules):
    """Whether any of the modules has hooks."""
    return any(getattr(module, name) for module in modules for name in _HOOKS)

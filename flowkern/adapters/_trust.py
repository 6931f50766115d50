"""Whether a part of a program gives a transform's own numbers, checked once for each structure."""

from torch import nn

from flowkern.adapters._plan import disagreement
from flowkern.ops._flow_program import Program

_AGREED: dict = {}
_OF_TORCH = frozenset((*nn.Module().__dict__, "_backward_pre_hooks"))


def agreed(module, part, features, comparisons):
    """Why the part is not known to give the transform's own numbers, or None if it does.

    comparisons: as for `disagreement`; they depend on the structure alone, which is remembered.
    """
    program = Program(features, part.steps, part.context)
    kinds = tuple(map(type, part.slots))
    structure = tuple(program.code.tolist()), tuple(program.numbers.tolist()), kinds, part.context
    key = structure, tuple(_signature(inner) for inner in module.modules())
    try:
        hash(key)
    except TypeError:
        return disagreement(comparisons)
    if key not in _AGREED:
        if len(_AGREED) >= 64:
            _AGREED.clear()
        _AGREED[key] = disagreement(comparisons)
    return _AGREED[key]


def _signature(module):
    """Class and settings of a module; the tensors that some keep as plain attributes by their values."""
    own = {k: v for k, v in module.__dict__.items() if k not in _OF_TORCH and not is_ours(module, k)}
    return type(module), type(module).forward, tuple((k, _hashable(own[k])) for k in sorted(own))


def _hashable(value):
    if hasattr(value, "tolist"):  # a tensor, or an array of numpy
        return str(value.dtype), tuple(value.shape), tuple(value.ravel().tolist())
    if isinstance(value, (tuple, list)):
        return tuple(map(_hashable, value))
    return value


# What `accelerate` put into a module.


def is_ours(module, name):
    """Whether the module's attribute `name` is what `accelerate` put there."""
    function = getattr(module.__dict__.get(name), "func", None)
    return (getattr(function, "__module__", None) or "").startswith("flowkern.adapters")


def bare(module):
    """A shallow copy of the module without replaced methods."""
    copied = object.__new__(type(module))
    copied.__dict__.update({k: v for k, v in module.__dict__.items() if not is_ours(module, k)})
    return copied


def strip(module):
    """Remove the replaced methods of a copied module and all in it."""
    for inner in module.modules():
        for name in [name for name in inner.__dict__ if is_ours(inner, name)]:
            del inner.__dict__[name]
    return module

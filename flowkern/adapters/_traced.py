"""Conditioners that users write themselves, as the layers of a program.

The network is called once, as a copy, and every function of torch that it calls is watched: a chain of linear layers
and activations on x, on the context, or on both concatenated is known then, whatever modules it is written in.
"""

import torch
from torch.overrides import TorchFunctionMode

from flowkern.adapters._plan import stranger
from flowkern.ops._activation import CALLS, of_call
from flowkern.programs import NO_TERM, layer

_NO_VALUES = frozenset(("__get__", "size", "dim", "ndimension", "numel", "__len__", "is_floating_point"))
_SAME = frozenset(("reshape", "view", "contiguous", "flatten", "to"))  # where the shape stays


def chain(net, width, context, call=lambda net, x, c: net(x, c)):
    """([`layer`], context) of the network, or why it is none such.

    width: how many features it reads; context: whether it is given one; call(net, x, c): how it is called. The
    context that comes back is how many features of it are read, 0 if the network does not use it.
    """
    first = next((m for m in net.modules() if isinstance(m, torch.nn.Linear)), None)
    if first is None:
        return f"its network {type(net).__name__} has no linear layer"
    joint, alone = max(1, first.in_features - width), first.in_features
    widths = dict.fromkeys((joint, alone)) if context else (None,)
    found = (_followed(net, width, w, call) for w in widths)  # only one of them fits what the network does
    return next(filter(None, found), f"its network {type(net).__name__} could not be called on such inputs")


def _followed(net, width, context, call):
    """As `chain` for this number of context features; None if the network raises an error."""
    name, copied = type(net).__name__, _copy(net)
    before = [dict(module.__dict__) for module in copied.modules()]
    x = torch.randn(4, width, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
    c = None if context is None else x.new_ones(4, context)
    watch = _Watch(x, c)
    try:
        with torch.no_grad(), watch:
            out = call(copied, x, c)
    except Exception:  # a user's network may do anything
        return watch.reason and f"its network {name} {watch.reason}"
    if [module.__dict__ for module in copied.modules()] != before:
        return f"its network {name} changes itself at a call"
    reason = watch.reason or watch.unfit(out) or (width and watch.reads == "c" and "reads the context alone")
    return f"its network {name} {reason}" if reason else _read(net, copied, watch, c)


def _copy(net):
    """A copy with weights of its own, in the modes of the network."""
    copied = stranger(net)
    for module, original in zip(copied.modules(), net.modules()):
        module.training = original.training
    return copied


def _read(net, copied, watch, c):
    places = {id(p): name for name, p in copied.named_parameters(remove_duplicate=False)}
    layers = []
    for weight, bias, activation in watch.layers:
        names = [None if t is None else places.get(id(t)) for t in (weight, bias)]
        if names[0] is None or (bias is not None and names[1] is None):
            return f"its network {type(net).__name__} computes its weights"
        linear = tuple(name and _slot(net, name) for name in names)
        of_context = not layers and watch.reads != "x"
        term = ("identity", None, None) if of_context else NO_TERM
        layers.append(layer(linear, term, joint=of_context, activation=activation or "identity"))
    context = 0 if watch.reads == "x" else c.shape[1]
    return layers, context


def _slot(net, path):
    module, _, name = path.rpartition(".")
    return net.get_submodule(module)._parameters, name


class _Watch(TorchFunctionMode):
    """What a network makes of x and c: layers as [weight, bias, activation], and why it is no chain of these.

    reads: "x", "c" or "both", what the first layer reads.
    """

    def __init__(self, x, c):
        super().__init__()
        self.given = {"x": x} if c is None else {"x": x, "c": c}
        self.current, self.reads, self.reason, self.layers, self.alive = None, None, "", [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.reason and not (func.__name__ in _NO_VALUES and not isinstance(out, torch.Tensor)):
            self.alive.append(out)  # no other tensor gets its id
            if not self._follow(func.__name__, out, args, kwargs or {}):
                self.reason = f"calls {func.__name__}, which has no layer"
        return out

    def unfit(self, out):
        """Why the result is not that of the last layer, or None."""
        if not self.layers or out is not self.current:
            return "returns something else than the outputs of its last layer"
        return "has an activation behind its last layer" if self.layers[-1][2] else None

    def _follow(self, name, out, args, kwargs):
        if name == "cat":
            return self._joined(out, *args, **kwargs)
        source = args[0] if args else kwargs.pop("input", None)
        if name == "linear":
            return self._linear(out, source, *args[1:], **kwargs)
        if name == "dropout":
            return self._unchanged(source, out) if _is_idle(*args[1:], **kwargs) else False
        if name in _SAME:
            return self._unchanged(source, out)
        if name in CALLS:
            return self._activated(out, source, of_call(name, *args[1:], **kwargs))
        return False

    def _joined(self, out, tensors, dim=0):
        both = list(tensors)
        if dim not in (1, -1) or len(both) != 2 or any(t is not g for t, g in zip(both, self.given.values())):
            return False
        self.given["both"] = out
        return len(self.given) == 3

    def _linear(self, out, source, weight, bias=None):
        if not self.layers:
            self.reads = next((name for name, tensor in self.given.items() if tensor is source), None)
        if self.reads is None or self.layers and source is not self.current:
            return False
        self.layers.append([weight, bias, None])
        self.current = out
        return True

    def _activated(self, out, source, activation):
        if activation is None or not self.layers or source is not self.current or self.layers[-1][2]:
            return False
        self.layers[-1][2], self.current = activation, out
        return True

    def _unchanged(self, source, out):
        """Whether it is the same tensor in the same shape under another name."""
        if out.shape != source.shape or out.dtype != source.dtype:
            return False
        if source is self.current:
            self.current = out
        for name, tensor in self.given.items():
            if tensor is source:
                self.given[name] = out
        return True


def _is_idle(p=0.5, training=True, inplace=False):
    return p == 0 or not training

"""Masked networks of libraries: their degrees, worked out of their masks, and their state at a call."""

import itertools
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from flowkern import _torch
from flowkern.adapters._plan import changed
from flowkern.ops import Degrees
from flowkern.ops._activation import MODULES, of_function, of_module
from flowkern.ops._arguments import version
from flowkern.ops._masked_autoregressive import masks as masks_of
from flowkern.ops._plain import common, is_abstract, plainly

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def activation_of(function):
    """The `Activation` that a function or a module of torch computes, or None for any other."""
    if isinstance(function, nn.Module):
        return of_module(function, _class_of(function))
    return of_function(function)


def _class_of(module):
    """Its class; `torch.export` puts one of its own in front where a module is used twice."""
    if not torch.compiler.is_compiling() or torch.compiler.is_dynamo_compiling():
        return type(module)
    mro = type(module).__mro__
    proxies = [i for i, cls in enumerate(mro) if cls.__module__ == "torch.fx.experimental.proxy_tensor"]
    return mro[proxies[-1] + 1] if proxies else mro[0]


class Network(NamedTuple):
    """What is known of a masked network as long as its modules and masks stay.

    degrees: its `Degrees`.
    exact: for each layer, whether its mask is 1 where the degrees let it read, and 0 elsewhere; if not, its
        weight must be multiplied by the mask.
    modules: all its modules.
    hooks: the dictionaries of hooks of all its modules.
    dropouts, norms, activations: its modules of these kinds.
    remark: what `explain` says of it.
    """

    degrees: Degrees
    exact: tuple
    modules: tuple
    hooks: tuple
    dropouts: tuple
    norms: tuple
    activations: tuple
    remark: str = ""

    def busy(self):
        """Why the library must compute, as the network's modules are now; None if it need not."""
        if any(self.hooks):
            return "its network has hooks"
        if _torch.has_global_hooks():
            return "there are hooks of all modules"
        for module in self.modules:
            if "forward" in module.__dict__ and has_own_forward(module):
                return f"its network holds a {type(module).__name__} with a forward of its own"
        if any(module.training and module.p > 0 for module in self.dropouts):
            return "its dropout is active"
        if any(norm.training or norm.running_mean is None for norm in self.norms):
            return "its batch normalisation takes the statistics of the batch"
        if not all(map(activation_of, self.activations)):
            return "an activation of its network has no kernel"
        return None


def plain_masks(linears):
    """Their masks, as they are outside of transforms of torch.func."""
    return [common("mask", linear.mask) for linear in linears]


def network(net, masks, skips):
    """The `Network` of net with such masks, or why they are not those of an autoregressive one.

    masks: (units, inputs) of each layer; the outputs of the last belong to one feature after the
        other.
    skips: for each layer the number of the earlier one that is added to it, or None.
    """
    if any(map(is_abstract, masks)):
        return "it is on the meta device" if masks[0].is_meta else "its masks are fake tensors"
    masks = [mask.detach().cpu() for mask in masks]
    degrees = _degrees([mask != 0 for mask in masks], skips)
    if degrees is None:
        return "its masks are not autoregressive"
    said = masks_of(masks[0].shape[1], degrees.on("cpu")[2], masks)
    exact = tuple(torch.equal(mask, by_degrees.to(mask.dtype)) for mask, by_degrees in zip(masks, said))
    modules = tuple(net.modules())
    hooks = [getattr(module, name) for module in modules for name in _HOOKS]
    return Network(
        degrees,
        exact,
        modules,
        tuple(hooks),
        tuple(m for m in modules if isinstance(m, nn.Dropout)),
        tuple(m for m in modules if isinstance(m, nn.BatchNorm1d)),
        tuple(m for m in modules if type(m) in MODULES),
    )


def _degrees(masks, skips):
    """Degrees that put everyone after all that it depends on; None if that goes in circles."""
    features = masks[0].shape[1]
    reads, past = torch.eye(features, dtype=torch.float32, device="cpu"), []
    for mask, skip in zip(masks, skips):
        reads = (mask.float() @ reads).clamp(max=1)  # (units, features) 1 where it depends
        if skip is not None:
            reads = torch.maximum(reads, past[skip])
        past.append(reads)
    levels = _levels(reads.view(features, -1, features).amax(1))
    if levels is None:
        return None
    return Degrees(levels, [(units * levels).amax(1).long() for units in past[:-1]])


def _levels(depends):
    """(D,) how long the longest chain of features is that ends at each; None if one is a circle."""
    waiting = depends.sum(1)
    levels = torch.zeros(len(depends), dtype=torch.long, device="cpu")
    for level in range(1, len(depends) + 1):
        ready = (waiting == 0) & (levels == 0)
        levels[ready] = level
        waiting -= depends[:, ready].sum(1)
    return levels if levels.all() else None


class _Seen(NamedTuple):
    """What an inspection found, and of which modules and masks.

    modules: the `_submodules` of the layer.
    masks: the dictionary of buffers that holds each mask, the mask and its version.
    """

    modules: tuple = ()
    masks: tuple = ()
    found: Network | str | None = None

    @classmethod
    def now(cls, module, found):
        buffers = [m._buffers for m in module.modules() if "mask" in m._buffers]
        masks = [(held, held["mask"], _version(held["mask"])) for held in buffers]
        return cls(_submodules(module), tuple(masks), found)

    def has_modules_of(self, module):
        """Whether the same modules are at the same places of the layer."""
        if not self.modules or self.modules[0][0] is not module._modules:
            return False
        return all(tuple(now.values()) == before for now, before in self.modules)

    def has_masks(self):
        """Whether its modules still have those masks, unwritten."""
        return all(now.get("mask") is mask and _version(mask) == version for now, mask, version in self.masks)


def _submodules(module):
    """(dictionary of submodules, what is in it) of the module and of each in it that may have some."""
    holders = [m._modules for m in module.modules() if m._modules or isinstance(m, _CONTAINERS)]
    return tuple((held, tuple(held.values())) for held in holders)


class Inspection:
    """What a masked network is, looked at again whenever a submodule or a mask is replaced, or a mask
    written to.

    Nothing that depends on a parameter is kept. Copies and pickles together with the module whose
    network it knows.

    Args:
        linears: linears(module) gives the masked linear modules in order.
        inspect: inspect(module) gives a `Network`, or why the module is left to the library.
        unfit: unfit(module) gives why a setting that is read at every call has no kernel, or None.
        formulas: names of the methods of the layer's class whose formulas the kernel has.
    """

    def __init__(self, linears, inspect, unfit, formulas):
        self.linears, self.inspect, self.unfit = linears, inspect, unfit
        self.formulas = formulas
        self.seen = _Seen()

    def __call__(self, module):
        """(linears, what inspect says of them), or (None, why the module is left at this call)."""
        found = self._found(module)
        if isinstance(found, str):
            return None, found
        reason = changed(module, self.formulas) or self.unfit(module)
        return (None, reason) if reason else (self.linears(module), found)

    def _found(self, module):
        seen = self.seen
        if torch.compiler.is_compiling():  # a graph takes modules and masks for constants
            same = _submodules(module) == seen.modules  # walked from the layer, for the names in an export
            return seen.found if same else "its modules are not those of its last call"
        if _torch.transforming() and _is_mapped(module):
            return "torch.func.vmap maps over its weights"
        if not (seen.has_modules_of(module) and seen.has_masks()):
            with plainly():
                seen = self.seen = _Seen.now(module, self.inspect(module))
        return seen.found

    def __getstate__(self):
        masks = tuple((held, mask, -1) for held, mask, _ in self.seen.masks)  # a copy counts versions from zero
        return self.__dict__ | {"seen": self.seen._replace(masks=masks)}

    @property
    def remark(self):
        """What `explain` says of the network beside whether it is left."""
        return getattr(self.seen.found, "remark", "")

    def left(self, module):
        """Why the library computes the module as it is now; None if it does not.

        Its masks are looked at again: a change through `.data` or numpy is not counted as one.
        """
        self.seen = _Seen()
        found = self(module)[1]
        return found if isinstance(found, str) else found.busy()


def _version(mask):
    return None if mask is None else version(mask)


def has_own_forward(module):
    """Whether another forward than that of its class was put on the module, as zuko's Bayesian
    models do for a while."""
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def parameter(module, name):
    """module.name, found sooner if it is a plain parameter: torch looks there last."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def dtype_of(linear):
    """The dtype of a linear layer, whose weight may be costly to compute, or change when it is."""
    held = linear._parameters.get("weight")
    held = linear._parameters.get("bias") if held is None else held
    return (linear.weight if held is None else held).dtype


def class_of(module):
    """Its class before `torch.nn.utils.parametrize` put one of its own in front."""
    return type_before_parametrizations(module)


def parts(net):
    """(name, module) of all that a network holds, but for parametrizations, which compute tensors."""
    return [(name, m) for name, m in net.named_modules() if "parametrizations" not in name.split(".")]


def takes(width, dtype, inputs):
    """Whether a linear layer of that many inputs would not raise an error at these."""
    as_wide = inputs.shape[-1:] == (width,)
    return as_wide and (inputs.dtype == dtype or torch.is_autocast_enabled(inputs.device.type))


def _is_mapped(module):
    return any(map(_torch.maps_over, itertools.chain(module.parameters(), module.buffers())))


def normalisation(norm):
    """(gain, offset) of a batch normalisation in evaluation."""
    gain = (norm.running_var + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight
    offset = -norm.running_mean * gain
    return gain, offset if norm.bias is None else offset + norm.bias

"""Velocity fields that libraries hand to a solver: the network that computes one, and its fused solve."""

import copy
import math
from typing import NamedTuple

import torch
from torch import nn

from flowkern import _torch
from flowkern.adapters._masked import has_own_forward
from flowkern.adapters._plan import disagreement, points, stranger
from flowkern.nn.vector_field import (
    dense_layers,
    has_hooks,
    read_activation,
)
from flowkern.nn.vector_field import described as described_network
from flowkern.ops import neural_ode
from flowkern.ops._activation import KINDS
from flowkern.ops._arguments import without_autocast

ADAPTIVE = (
    "its solver chooses its steps by itself; accelerate(model, ode={'method': 'rk4', 'steps': 32}) "
    "puts fixed ones in its place"
)
_KNOWN = (nn.ReLU, nn.SELU, *(kind.module for name, kind in KINDS.items() if name != "identity"))
_ORDERS = (("x", "t"), ("t", "x"), ("x",))
# What a model may do beside its network: arrange x and t, and repeat t by a product with ones.
_ONES = {"ones", "ones_like", "new_ones"}
_ARRANGES = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "cat", "clone", "detach", "expand", "lift_fresh",
    "permute", "repeat", "select", "slice", "split", "squeeze", "stack", "t", "transpose", "unsqueeze", "view",
    *_ONES,
}  # fmt: skip


def described(ode):
    """What explain says of steps in place of a solver's own."""
    options = ", ".join(f"{name} {value}" for name, value in ode.items())
    return f"fixed steps in place of its own: {options}"


class OdeError(NamedTuple):
    """The largest errors of the state and of the log-det over the data: of fixed steps, of the library's own.

    None where there is no log-det.
    """

    y: float
    logabsdet: float | None
    own_y: float
    own_logabsdet: float | None


# Which network computes a field.


def left(network, dense):
    """Why a library computes a field's network as it is now; None if it does not.

    Args:
        network: the module; it may be wrapped in others, which count too.
        dense: dense(network), its layers; an AttributeError or TypeError where it is no dense network.
    """
    if has_hooks(network):
        return "its network has hooks"
    if any(map(has_own_forward, network.modules())):
        return "a layer of its network has a forward of its own"
    return _unknown(network, dense)


def _unknown(network, dense):
    try:
        dense(network)
    except (AttributeError, TypeError) as error:
        return f"its network is not known: {error}"
    return None


class Field(NamedTuple):
    """A velocity model that is one dense network of x and t, whatever modules it is wrapped in.

    path: the network's name within the model.
    activations: class → how `Dense` has it, of activations that are not torch's.
    order: how x and t are concatenated; without "t" the field does not change in time.
    """

    path: str
    activations: dict
    order: tuple

    def left(self, model):
        """Why the library computes the model as it is now; None if it does not."""
        if reason := left(model, self._dense):
            return reason
        return None if self._widths(self._dense(model)) else "its network has other inputs than x and t"

    def fits(self, model, x):
        """Whether x (N, D) is of the network's width and dtype, and the model one to be solved here."""
        if self.left(model):
            return False
        dense = self._dense(model)
        weight = dense[0].linear.weight
        fits = x.dim() == 2 and x.shape[1] == self._widths(dense)["x"] and x.dtype == weight.dtype
        return fits and not x.is_complex()

    def solve(self, model, x, t, **options):
        """The `Solution` of `ops.neural_ode` from x (N, D) at t[0]."""
        dense = self._dense(model)
        with without_autocast(x.device.type):
            layers, time = described_network(dense, self._widths(dense))
            return neural_ode(x, layers, t, time=time, **options)

    def _dense(self, model):
        def read(part):
            return read_activation(part) or self.activations.get(type(part))

        return dense_layers(model.get_submodule(self.path), read=read)

    def _widths(self, dense):
        """How many columns of the network's input each part has; None if it has others."""
        inputs, features = dense[0].linear.in_features, dense[-1].linear.out_features
        widths = {part: {"x": features, "t": 1}[part] for part in self.order}
        return widths if sum(widths.values()) == inputs else None


def field_of(model, call):
    """The `Field` of a velocity model, or why there is none.

    Args:
        call: call(model, t, x), the velocity at t, a tensor without dimensions, and x (N, D).
    """
    if not isinstance(model, nn.Module):
        return "its velocity model is no torch.nn.Module"
    found = _network(model)
    if isinstance(found, str):
        return found
    copied = stranger(model)
    if others := _computed_outside(copied, found[0], call):
        return f"its velocity model computes more than its nn.Sequential: {', '.join(sorted(others))}"
    fields = [field for order in _ORDERS if not (field := Field(*found, order)).left(model)]
    reasons = [disagreement(lambda field=field: _comparisons(field, copied, call)) for field in fields]
    if None in reasons:
        return fields[reasons.index(None)]
    return next(iter(reasons), "its network has other inputs than x and t")


def _network(model):
    """The name of the one `nn.Sequential` that makes up the model, and activations of the user's own."""
    nets = ((path, net) for path, net in model.named_modules() if type(net) is nn.Sequential)
    path, net = next(((path, net) for path, net in nets if _is_all(net, model)), (None, None))
    if net is None:
        return "its velocity model is no single nn.Sequential"
    own = {type(part): kind for part in net if (kind := _measured(part))}
    return _unknown(net, Field("", own, ())._dense) or (path, own)


def _is_all(net, model):
    """Whether the model has parameters, buffers and modules in net alone, but for modules around it."""
    state = {*net.parameters(), *net.buffers()}
    if not state.issuperset((*model.parameters(), *model.buffers())):
        return False
    inside = set(net.modules())
    return all(module in inside or net in set(module.modules()) for module in model.modules())


class _Outside(_torch.TorchDispatchMode):
    """Notes the operations that do more than arrange tensors, while `inside` is False.

    Values at a few points cannot tell a clamp or a wrapped angle from nothing; and a factor of 1 may be
    another one at the next call.
    """

    def __init__(self):
        super().__init__()
        self.inside, self.ones, self.found = False, [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in _ONES:
            self.ones.append(result)
        by_ones = name == "mul" and any(map(self._is_ones, args))
        if not (self.inside or by_ones or name in _ARRANGES):
            self.found.add(name)
        return result

    def _is_ones(self, factor):
        return isinstance(factor, torch.Tensor) and any(_torch.is_alias(factor, one) for one in self.ones)


@torch.no_grad()
def _computed_outside(model, path, call):
    """The operations of a model, a copy, beside those of its network, in training and evaluation."""
    net, noted = model.get_submodule(path), _Outside()
    enter = net.register_forward_pre_hook(lambda *_: setattr(noted, "inside", True))
    leave = net.register_forward_hook(lambda *_: setattr(noted, "inside", False))
    try:
        for mode in (True, False):
            x, t = points(net[-1].out_features), torch.tensor(0.25, dtype=torch.float64, device="cpu")
            model.train(mode)
            with noted:
                call(model, t, x)
    except Exception:
        return set()  # the comparison fails alike, and says why
    finally:
        enter.remove(), leave.remove()
    return noted.found


@torch.no_grad()
def _measured(part):
    """(name, slope, gain) of an activation that is not torch's, by its values; None if it is not known.

    One with attributes is not: they might change.
    """
    foreign = type(part).__module__.startswith("torch.nn") or vars(part).keys() - vars(nn.Module()).keys()
    if foreign or any(True for _ in part.parameters()):
        return None
    z = torch.linspace(-25, 25, 401, dtype=torch.float64, device="cpu")
    for known in _KNOWN:
        trials = (copy.deepcopy(part).train(mode) for mode in (True, False))
        if not disagreement(lambda known=known, trials=trials: (("", [known()(z)], [t(z.clone())]) for t in trials)):
            return read_activation(known())
    return None


def _comparisons(field, model, call):
    """The model against one Euler step of length 1 of its field."""
    x = points(model.get_submodule(field.path)[-1].out_features)
    for t, mode in ((0.25, True), (0.75, False)):
        times = torch.tensor([t, t + 1], dtype=torch.float64, device="cpu")
        wanted = call(model.train(mode), times[0], x.clone())
        yield "velocity", [wanted], [field.solve(model, x, times, method="euler").y[1] - x]


# Steps between times.


def between(times, ode):
    """Options of `ops.neural_ode` for equal steps between times, none longer than ode's from end to end."""
    longest = max(abs(b - a) for a, b in zip(times, times[1:]))
    steps = max(1, math.ceil(longest / abs(times[-1] - times[0]) * ode["steps"] - 1e-6))
    checkpoint = math.gcd(steps, ode.get("checkpoint", 1))
    return {**ode, "steps": steps, "checkpoint": checkpoint}


def host_times(t):
    """The times (T,) as numbers; None unless they rise or fall throughout, at least two."""
    times = t.tolist() if t.dim() == 1 else []
    gaps = [b - a for a, b in zip(times, times[1:])]
    return times if gaps and (min(gaps) > 0 or max(gaps) < 0) else None


def solution(field, model, x, t, ode):
    """y and the log-det in float64 at times t, by many more steps than ode has."""
    options = between(t.tolist(), {"method": "dopri5", "steps": 16 * ode["steps"]})
    return field.solve(model, x.double(), t.double(), trace="exact", **options)


def known_of(module, method, kind):
    """What a replaced method of the module knows, a `kind`; None if it is not replaced so."""
    arguments = getattr(module.__dict__.get(method), "args", (None,))
    return arguments[0] if isinstance(arguments[0], kind) else None


def largest(got, wanted):
    """The largest difference between two tensors."""
    return float((got - wanted).abs().max())

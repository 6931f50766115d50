"""Vector fields of continuous flows: dense networks of the state, the time and a context."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from flowkern import _torch
from flowkern.nn._arguments import (
    check_broadcast,
    check_choice,
    check_context,
    check_count,
    check_dtype,
    check_features,
    check_sizes,
)
from flowkern.nn._module import Module
from flowkern.nn.mlp import zero
from flowkern.ops import Activation, FieldLayer, TimeEmbedding
from flowkern.ops._activation import SETTINGS, of_module

# name of φ(t): how many columns of the first layer it has
_TIMES = {"concatenate": 1, "fourier": 6, None: 0}
_ORDER = ("x", "t", "context")
_SELU, _SELU_GAIN = Activation("elu", 1.6732632423543772), 1.0507009873554805


class VectorField(Module):
    """f(t, x; context) = W_n a(… a(W_1 (x, φ(t), context) + b_1) …) + b_n; the last layer starts at zero.

    φ(t) is t, or the Fourier features (cos ωt, sin ωt) with ω = π, 2π, 3π.

    Args:
        features: number of features D of x and of f.
        context: number of context features; 0 for none.
        hidden_features: widths of the hidden layers.
        activation: a; an `ops.Activation`, its name, or "selu".
        time: "concatenate" for φ(t) = t, "fourier", or None for a field that does not change in time.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Source: Grathwohl et al., FFJORD (2019), B.1; fourier: the fields of zuko's CNF.

    Example:
        >>> import torch
        >>> from flowkern import nn
        >>> nn.VectorField(3)(torch.tensor(0.5), torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation | str = "tanh",
        time: str = "concatenate",
    ) -> None:
        super().__init__()
        check_count("features", features, 1)
        hidden = check_sizes(features, context, features, hidden_features)
        check_choice("time", time, _TIMES)
        widths = (features + _TIMES[time] + context, *hidden, features)
        parts: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            parts += (nn.Linear(a, b), _module(activation))
        zero(parts[-2])
        self._hold(nn.Sequential(*parts[:-1]), features, context, time, _ORDER)

    @classmethod
    def of(cls, net: Any, time: str | None = "concatenate", order: Any = _ORDER) -> "VectorField":
        """Wrap an existing network as a vector field; parameters are shared.

        Args:
            net: an `nn.Sequential` of `nn.Linear` and activations in turn. Its outputs are the features,
                and what its inputs have beyond them and φ(t) is the context.
            time: as for `VectorField`.
            order: how the inputs are concatenated, a permutation of ("x", "t", "context").

        Raises:
            TypeError: net holds something else, has hooks or a forward of its own.
            ValueError: time or order is unknown, or net has too few inputs.
        """
        check_choice("time", time, _TIMES)
        if sorted(order) != sorted(_ORDER):
            raise ValueError(f"order: expected a permutation of {_ORDER}, got {order!r}")
        if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
            raise TypeError(f"net: expected an nn.Sequential, got {type(net).__name__}")
        if has_hooks(net):
            raise TypeError("net: has hooks, which the fused solve would not call")
        dense = dense_layers(net)
        inputs, features = dense[0].linear.in_features, dense[-1].linear.out_features
        context = inputs - features - _TIMES[time]
        if context < 0:
            raise ValueError(
                f"net: expected at least {features + _TIMES[time]} inputs, its {features} outputs and "
                f"{_TIMES[time]} of time, got {inputs}"
            )
        field = cls.__new__(cls)
        nn.Module.__init__(field)
        field._hold(net, features, context, time, tuple(order))
        return field

    def _hold(self, net: nn.Module, features: int, context: int, time: str | None, order: tuple[str, str, str]) -> None:
        self.net: Any = net
        self.features, self.context, self.order = features, context, order
        widths = {"x": features, "t": _TIMES[time], "context": context}
        self._widths = {part: widths[part] for part in order}
        self._known: tuple[Any, Any] = None, None

    def forward(self, t: Any, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """f(t, x) (…, D) for t a number or a tensor that broadcasts with x's batch shape, x (…, D)."""
        check_features("x", x, self.features)
        check_dtype("x", x, self.net[0].weight)
        check_context(context, self.context)
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        batch = check_broadcast("t", t.shape, "x", x.shape[:-1])
        parts: dict[str, Any] = {"x": x, "t": self._embedding(t), "context": context}
        if context is not None:
            batch = check_broadcast("context", context.shape[:-1], "x and t", batch)
        given = [parts[part] for part, width in self._widths.items() if width]
        return self.net(torch.cat([part.expand(*batch, part.shape[-1]) for part in given], -1))

    def _embedding(self, t: torch.Tensor) -> torch.Tensor:
        t, frequencies = t.unsqueeze(-1), self.frequencies
        if frequencies is None:
            return t
        return torch.cat(((t * frequencies).cos(), (t * frequencies).sin()), -1)

    @property
    def frequencies(self) -> Any:
        """ω of the Fourier features, None without; made anew, for `to_empty` would empty a buffer."""
        if self._widths["t"] != _TIMES["fourier"]:
            return None
        weight = self.net[0].weight
        return math.pi * torch.arange(1, 4, dtype=weight.dtype, device=weight.device)

    def layers(self, context: torch.Tensor | None = None) -> Any:
        """The `FieldLayer`s of `ops.neural_ode` given the context (…, context).

        Raises:
            TypeError: the field has hooks or a forward of its own, which a fused solve would not call.
        """
        check_context(context, self.context)
        if context is not None:
            check_dtype("context", context, self.net[0].weight)
        return self.described(context)[0]

    @property
    def time(self) -> Any:
        """The `TimeEmbedding` of `ops.neural_ode`; None if the field does not change in time."""
        if not self._widths["t"]:
            return None
        return TimeEmbedding(columns(self.net[0].weight, self._widths)["t"], self.frequencies)

    def described(self, context: torch.Tensor | None) -> Any:
        """(layers, time) for callers that have checked the context.

        Raises:
            TypeError: as `layers`.
        """
        if type(self).forward is not VectorField.forward:
            raise TypeError("field: has a forward of its own, which the fused solve would not call")
        if has_hooks(self):
            raise TypeError("field: has hooks, which the fused solve would not call")
        return described(self._dense(), self._widths, context, self.frequencies)

    @property
    def weight(self) -> Any:
        """The first layer's weight, whose dtype and device are the field's."""
        return self._dense()[0].linear.weight

    def _dense(self) -> Any:
        """The `Dense` layers, read anew where the network has other parts or settings than at the last call."""
        if torch.compiler.is_compiling():
            return dense_layers(self.net)
        structure = [(part, type(part), _settings(part)) for part in self.net._modules.values()]
        known, dense = self._known
        if structure != known:
            dense = dense_layers(self.net)
            self._known = structure, dense
        return dense

    def __getstate__(self) -> Any:
        return self.__dict__ | {"_known": (None, None)}

    def extra_repr(self) -> str:
        return f"features={self.features}, context={self.context}, order={self.order}"


class Dense(NamedTuple):
    """One layer of a network: gain·a(W u + b)."""

    linear: nn.Module
    activation: Activation = Activation("identity")
    gain: float = 1.0


def _module(activation):
    return nn.SELU() if activation == "selu" else Activation.of(activation).module()


def read_activation(part):
    """(activation, gain) of a module as `Dense` has them, None if there is no kernel for it."""
    if type(part) is nn.SELU:
        return _SELU, _SELU_GAIN
    activation = of_module(part, type(part))
    return activation and (activation, 1.0)


def dense_layers(net, is_linear=lambda part: type(part) is nn.Linear, read=read_activation):
    """The `Dense` layers of an `nn.Sequential`; TypeError if it holds anything else.

    is_linear: whether a module of it computes W u + b by attributes `weight` and `bias`.
    read: what `read_activation` says, or more.
    """
    layers = []
    for part in net._modules.values():
        if is_linear(part):
            layers.append(Dense(part))
        elif layers and layers[-1].activation.kind == "identity" and read(part):
            layers[-1] = Dense(layers[-1].linear, *read(part))
        else:
            raise TypeError(f"net: expected linear layers and known activations in turn, got {part}")
    if not layers or layers[-1].activation.kind != "identity":
        raise TypeError("net: expected a linear layer at the end")
    return layers


def _settings(part):
    """What else than its class tells which activation a module computes."""
    return [part.__dict__[name] for name in SETTINGS.get(type(part), ())]


def described(dense, widths, context=None, frequencies=None):
    """(`FieldLayer`s, `TimeEmbedding` or None) of a network whose inputs are concatenated part by part.

    widths: how many columns of the input each part has, of "x", "t" and "context", in order.
    """
    first = columns(dense[0].linear.weight, widths)
    weight, bias = first["x"], dense[0].linear.bias
    if context is not None:
        bias = F.linear(context, first["context"], bias)
    layers = [FieldLayer(weight, bias, dense[0].activation)]
    for before, layer in zip(dense, dense[1:]):
        weight = layer.linear.weight
        weight = weight if before.gain == 1 else before.gain * weight
        layers.append(FieldLayer(weight, layer.linear.bias, layer.activation))
    return tuple(layers), TimeEmbedding(first["t"], frequencies) if widths.get("t") else None


def columns(weight: torch.Tensor, widths: dict) -> dict:
    """The columns of the first layer's weight that see each part of the input."""
    return dict(zip(widths, weight.split(list(widths.values()), 1)))


def has_hooks(net: nn.Module) -> bool:
    """Whether a module of the network would call a hook."""
    return _torch.has_global_hooks() or any(_own_hooks(module) for module in net.modules())


def _own_hooks(module):
    return module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks

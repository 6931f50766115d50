"""The conditioner of autoregressive layers: a masked network."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flowkern import _torch
from flowkern.nn._arguments import (
    check_context,
    check_count,
    check_dtype,
    check_features,
    check_one_width,
    check_sizes,
)
from flowkern.nn._module import Module
from flowkern.nn.mlp import InputLayer, zero
from flowkern.ops import Activation, ContextTerm, Degrees, MaskedLayer
from flowkern.ops._arguments import version
from flowkern.ops._masked_autoregressive import folded, masks
from flowkern.ops._plain import common, is_abstract, plainly


class MADE(Module):
    """params_i = f_i(x_j of lower order, context), an MLP with masked weights.

    h₀ = W x + V c + b, hₖ = Wₖ a(hₖ₋₁) + bₖ, or in residual blocks hₖ = hₖ₋₁ + Bₖ a(Aₖ a(hₖ₋₁));
    the last layer starts at zero. Each hidden unit has a degree, the highest order that it may see,
    and the degrees of a layer's units are spread evenly over those that are of use. With a context
    there are units that see nothing else, so that the first feature depends on it too.

    Args:
        features: number of features D.
        outputs: number of parameters to return, a multiple of D.
        context: number of features of the context; 0 for none.
        hidden_features: widths of the hidden layers, also below D; of the blocks if residual.
        activation: a; an `ops.Activation`, or its name.
        residual: whether the hidden layers are residual blocks, all of one width.
        order: integers (D,), of which only the order counts. Features of one order do not see each
            other. Default: 0 … D − 1. It is saved in the state_dict. `torch.compile` takes it for a
            constant: after a change other than by `load_state_dict`, call the module once outside of it.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value; the error names it.

    Source: Germain et al., MADE (2015); residual: Durkan et al., Neural Spline Flows (2019), B.1.

    Example:
        >>> import torch
        >>> from flowkern import nn
        >>> nn.MADE(3, 6)(torch.zeros(5, 3)).shape  # two parameters for each feature
        torch.Size([5, 6])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        activation: Activation | str = "relu",
        residual: bool = False,
        order: torch.Tensor | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_count("features", features, 1)
        hidden = check_sizes(features, context, outputs, hidden_features)
        if outputs % features:
            raise ValueError(f"outputs: expected a multiple of {features} features, got {outputs}")
        Activation.of(activation)
        if residual:
            check_one_width(hidden)
            hidden = hidden[:1] * (1 + 2 * len(hidden))
        widths = (*hidden, outputs)
        self.activation, self.residual = activation, residual
        self.input = InputLayer(features, context, widths[0])
        self.hidden: Any = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        zero(self.hidden[-1] if self.hidden else self.input)
        self._values = _checked_order(order, features)
        self._seen: tuple[Any, Any] = None, None
        self._degrees = self._degrees_of(self._values)
        self.register_buffer("order", self._values.to(self.input.bias.device, copy=True))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """x (…, D) and context (…, context) -> (…, outputs), those of one feature side by side."""
        check_features("x", x, len(self.order))
        check_dtype("x", x, self.input.bias)
        layers = [folded(layer) if layer.context else layer for layer in self.layers(context)]
        ranks = self.degrees.on(x.device)[2]
        u = x
        past: list[Any] = []
        for layer, mask in zip(layers, masks(len(self.order), ranks, [w for w, *_ in layers])):
            z: Any = F.linear(u, layer.weight * mask) + layer.bias  # type: ignore[operator]
            past.append(z if layer.skip is None else z + past[layer.skip])
            u = Activation.of(self.activation)(past[-1])
        return past[-1]

    def layers(self, context: torch.Tensor | None = None) -> list[MaskedLayer]:
        """The `MaskedLayer`s of `ops.masked_autoregressive` given the context (…, context)."""
        first = self.input
        check_context(context, first.context_features)
        term = None
        if context is not None:
            check_dtype("context", context, first.bias)
            term = ContextTerm(context, first.context_weight)
        layers = [MaskedLayer(first.weight, first.bias, self.activation, context=term)]
        for linear in self.hidden:
            skip = len(layers) - 2 if self.residual and len(layers) % 2 == 0 else None
            layers.append(MaskedLayer(linear.weight, linear.bias, self.activation, skip))
        layers[-1] = layers[-1]._replace(activation="identity")
        return layers

    @property
    def degrees(self) -> Degrees:
        """The `Degrees` of the features and of the hidden units."""
        order = self.order
        if torch.compiler.is_compiling():
            _check_unchanged(order, self._values)
        elif not self._has_seen(order):
            self._read(order)
        return self._degrees

    def _has_seen(self, order: torch.Tensor) -> bool:
        seen, known = self._seen
        return order is seen and known is not None and order._version == known

    def _read(self, order: torch.Tensor) -> None:
        """Make the degrees anew if the order has other values than those they were made of."""
        if is_abstract(order):
            return
        with plainly():
            values = _common(order)
            if not torch.equal(values, self._values):
                self._degrees, self._values = self._degrees_of(values), values
            self._degrees.on(order.device)
        self._seen = order, _version(order)

    def _degrees_of(self, order: torch.Tensor) -> Degrees:
        low, high = (-1 if self.input.context_features else 0), int(order.max())
        widths = [linear.in_features for linear in self.hidden]
        return Degrees(order, [_spread(low, high, width) for width in widths])

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._read(self.order)  # a graph cannot

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_seen": (None, None)}  # a copy counts versions from zero

    def extra_repr(self) -> str:
        known = len(self.order) <= 16 and not self.order.is_meta
        order = self.order.tolist() if known else f"of {len(self.order)} features"
        return f"order={order}, activation={self.activation}, residual={self.residual}"


def _checked_order(order: Any, features: int) -> torch.Tensor:
    """order as ranks 0, 1, … on the CPU, whatever the default device; that of the features by default."""
    order = range(features) if order is None else order
    order = order if isinstance(order, torch.Tensor) else torch.tensor(order, device="cpu")
    integers = not order.is_floating_point() and not order.is_complex() and not order.is_meta
    if not integers or tuple(order.shape) != (features,):
        raise ValueError(
            f"order: expected integers of shape ({features},), got {order.dtype} {tuple(order.shape)} on {order.device}"
        )
    return torch.unique(order.cpu(), return_inverse=True)[1]


def _version(order: torch.Tensor) -> Any:
    """That of `version`, or None of a wrapper that torch.func makes anew."""
    return None if _torch.is_wrapped(order) else version(order)


def _common(order: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; ValueError if torch.func.vmap maps over modules of several orders."""
    return common("order", order).to("cpu", copy=True)


@_torch.constant_result
def _check_unchanged(order: torch.Tensor, known: torch.Tensor) -> None:
    """Raise where a graph would be made of another order than the module's at its last call."""
    with plainly():
        if not is_abstract(order) and not torch.equal(_common(order), known):
            raise ValueError(
                "order: was changed or replaced since the last call outside of torch.compile, which takes "
                "it for a constant"
            )


def _spread(low: float, high: float, width: int) -> torch.Tensor:
    """(width,) degrees, evenly from low up to high − 1: who sees the highest order serves nobody.

    Fewer units than degrees leave out the lower ones; no degree at all leaves units that see nothing.
    """
    count = max(high - low, 1)
    degrees = low + ((torch.arange(width, device="cpu") + 1) * count - 1) // width
    return degrees if high > low else degrees - 1

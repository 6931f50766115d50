"""Autoregressive layers: each feature's transform is conditioned by the features of lower order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flowkern.nn import MADE
from flowkern.nn._arguments import check_count, check_dtype, check_features, check_spline
from flowkern.ops import (
    AffineElement,
    ScaleMap,
    SoftclipKnots,
    SoftplusKnots,
    SplineElement,
    masked_autoregressive,
)
from flowkern.ops._flow_program import Conditioned
from flowkern.programs import Part, outputs, stacked
from flowkern.transforms import _program
from flowkern.transforms.base import Transform


class MaskedAutoregressive(Transform):
    """y_i = h(x_i; params_i(x of lower order, context)), log|det J| = Σ_i log h'(x_i).

    Both directions take one pass of the conditioner; the inverse takes it unit by unit.

    Args:
        conditioner: a module such as `nn.MADE`, with `layers(context)`, which gives the
            `MaskedLayer`s of `ops.masked_autoregressive`, and their `degrees`.
        element: h, an `AffineElement` or a `SplineElement` of `ops.masked_autoregressive`.

    Raises:
        TypeError: conditioner has no `layers` or no `degrees`; at the call, x has another dtype
            than the conditioner.
        ValueError: at the call, the conditioner gives layers that do not fit, or x or context has
            the wrong shape.

    Source: Papamakarios et al., Masked Autoregressive Flow (2017), eqs. 3–5.

    Example:
        >>> import torch
        >>> from flowkern import nn, ops, transforms
        >>> transform = transforms.MaskedAutoregressive(nn.MADE(3, 6), ops.AffineElement())
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, conditioner: nn.Module, element: AffineElement | SplineElement) -> None:
        super().__init__()
        if not callable(getattr(conditioner, "layers", None)) or not hasattr(conditioner, "degrees"):
            raise TypeError(
                "conditioner: expected a module with layers and degrees, such as nn.MADE, got "
                f"{type(conditioner).__name__}"
            )
        self.conditioner: Any = conditioner
        self.element = element

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, features) and logabsdet (…,)."""
        return self._map("x", x, context, False)

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, features) and logabsdet (…,)."""
        return self._map("y", y, context, True)

    def _map(
        self, name: str, x: torch.Tensor, context: torch.Tensor | None, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        degrees = self.conditioner.degrees
        check_features(name, x, degrees.sizes[0])
        layers = self.conditioner.layers(context)
        check_dtype(name, x, layers[0].weight)
        return masked_autoregressive(x, layers, degrees, self.element, inverse=inverse)

    def part(self, with_context: bool) -> Any:
        found = _program.made(self.conditioner, with_context)
        if isinstance(found, str):
            return found
        layers, context = found
        specs, slots = stacked(layers)
        degrees = self.conditioner.degrees
        features = degrees.sizes[0]
        step = Conditioned(specs, degrees, self.element, outputs(layers)[-1] // features)
        return Part((step,), slots, context, features)


class AffineAutoregressive(MaskedAutoregressive):
    """y_i = s(u_i)·x_i + b_i with (b_i, u_i) = params_i(x of lower order, context).

    It starts as the identity for the maps in which u = 0 means s = 1 (additive, exp, softclip,
    tanh, atan).

    Args:
        features: number of features D.
        context: number of context features; 0 for none.
        order: integers (D,), who comes before whom, as for `nn.MADE`. Default: 0 … D − 1. Two
            different orders make a coupling layer.
        scale_map: name of a scale map, or an `ops.ScaleMap`. Default: log s = u/(1 + |u|/ln 1000).
        conditioner: makes the conditioner, called as
            conditioner(features, outputs, context, hidden_features, order=order).
        hidden_features: widths of the conditioner's hidden layers.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value; the error names it.

    Source: Papamakarios et al., Masked Autoregressive Flow (2017), eqs. 3–5.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.AffineAutoregressive(3)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        order: torch.Tensor | Sequence[int] | None = None,
        scale_map: ScaleMap | str = "softclip",
        conditioner: Callable[..., nn.Module] = MADE,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_count("features", features, 1)
        scale_map = ScaleMap.of(scale_map)
        outputs = features * (1 if scale_map.kind == "additive" else 2)
        net = conditioner(features, outputs, context, hidden_features, order=order)
        super().__init__(net, AffineElement(scale_map))


class SplineAutoregressive(MaskedAutoregressive):
    """y_i = RQS(x_i; params_i) with params_i a function of x of lower order and the context.

    Outside [−bound, bound] the transform is the identity. It starts as the identity with the
    default knot map.

    Args:
        features, context, order, conditioner, hidden_features: as for `AffineAutoregressive`.
        bins, bound, knot_map: as for `SplineCoupling`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value; the error names it.

    Source: Durkan et al., Neural Spline Flows (2019), eqs. 4–8.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.SplineAutoregressive(3)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        order: torch.Tensor | Sequence[int] | None = None,
        bins: int = 8,
        bound: float = 5.0,
        knot_map: SoftplusKnots | SoftclipKnots | str = "softclip",
        conditioner: Callable[..., nn.Module] = MADE,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_count("features", features, 1)
        check_spline(bins, bound, knot_map)
        outputs = features * (3 * bins - 1)
        net = conditioner(features, outputs, context, hidden_features, order=order)
        super().__init__(net, SplineElement(float(bound), knot_map=knot_map))

"""Coupling layers: one half of the features conditions the transform of the other half."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flowkern import ops
from flowkern.nn import MLP
from flowkern.nn._arguments import (
    check_broadcast,
    check_context,
    check_count,
    check_features,
    check_spline,
)
from flowkern.ops import AffineElement, Degrees, ScaleMap, SoftclipKnots, SoftplusKnots, SplineElement
from flowkern.ops._flow_program import Conditioned
from flowkern.programs import Part, outputs, stacked
from flowkern.transforms import _program
from flowkern.transforms.base import Transform


def alternating_mask(features: int, parity: int = 1) -> torch.Tensor:
    """bool (features,), True at every second feature from `parity`; True at a single feature.

    Example:
        >>> from flowkern import transforms
        >>> transforms.alternating_mask(4)
        tensor([False,  True, False,  True])
    """
    check_count("features", features, 1)
    return (torch.arange(features, device=_device()) % 2 == parity % 2) | (features == 1)


class Coupling(Transform):
    """y_id = x_id, y_t = f(x_t; conditioner(x_id, context)); subclasses choose the op f.

    `index` and `identity` are the transformed and the other features. They are saved in the
    state_dict, so that weights never meet another mask than the one they were trained with.
    """

    def __init__(
        self, features: int, context: int, mask: Any, per_feature: int, conditioner: Any, hidden_features: Any
    ) -> None:
        super().__init__()
        check_count("features", features, 1)
        check_count("context", context, 0)
        mask = _checked_mask(mask, features)
        self.features, self.context, self.per_feature = features, context, per_feature
        self.register_buffer("index", mask.nonzero().squeeze(-1))
        self.register_buffer("identity", mask.logical_not().nonzero().squeeze(-1))
        if conditioner is None:
            outputs = len(self.index) * per_feature
            conditioner = MLP(len(self.identity), outputs, context, hidden_features)
        elif not callable(conditioner):
            raise TypeError(f"conditioner: expected a callable, got {type(conditioner).__name__}")
        self.conditioner = conditioner

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, features) and logabsdet (…,)."""
        return self._op(x, self._params("x", x, context), inverse=False)

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, features) and logabsdet (…,)."""
        return self._op(y, self._params("y", y, context), inverse=True)

    def _params(self, name: str, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """What the conditioner makes of the identity half, as a view (…, T, parameters)."""
        check_features(name, x, self.features)
        check_context(context, self.context)
        identity = x.index_select(-1, self.identity)
        if context is None:
            raw = self.conditioner(identity)
        else:
            raw = self.conditioner(*self._broadcast(name, identity, context))
        sizes = self.index.shape[0], self.per_feature
        if raw.shape[-1:] != (math.prod(sizes),):
            raise ValueError(
                f"conditioner: expected output shape (…, {sizes[0]}·{sizes[1]}), one block of "
                f"{sizes[1]} parameters per transformed feature, got {tuple(raw.shape)}"
            )
        return raw.view(*raw.shape[:-1], *sizes)

    def _broadcast(self, name: str, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x and context with one batch shape, unless the conditioner broadcasts them itself."""
        batch = check_broadcast("context", context.shape[:-1], name, x.shape[:-1])
        if getattr(self.conditioner, "broadcasts", False):
            return x, context
        return x.expand(*batch, x.shape[-1]), context.expand(*batch, context.shape[-1])

    def part(self, with_context: bool) -> Part | str:
        found = _program.conditioner(self.conditioner, with_context)
        if isinstance(found, str):
            return found
        layers, context = found
        specs, slots = stacked(layers)
        index, identity = self.index.tolist(), self.identity.tolist()
        hidden = [[1] * units for units in outputs(layers)[:-1]]
        degrees = Degrees([1 + (feature in index) for feature in range(self.features)], hidden)
        step = Conditioned(specs, degrees, self._element(), self.per_feature, tuple(index), tuple(identity))
        return Part((step,), slots, context, self.features)

    def extra_repr(self) -> str:
        index = "on meta" if self.index.is_meta else self.index.tolist()
        return f"features={self.features}, context={self.context}, index={index}"


class AffineCoupling(Coupling):
    """y_t = s(u)·x_t + b on the transformed half, log|det J| = Σ_t log s(u_t).

    The conditioner returns (…, T·2): shift b and raw scale u of the first transformed feature, of
    the second, and so on; (…, T) shifts if `scale_map` is "additive". With the built-in conditioner
    the layer starts as the identity for the maps in which u = 0 means s = 1 (additive, exp,
    softclip, tanh, atan).

    Args:
        features: number of features D. If all are transformed (as for D = 1), the conditioner is
            given no features: the parameters depend on the context alone, or on nothing.
        context: number of context features; 0 for none.
        mask: bool (D,), True at the transformed features. Default: `alternating_mask(features)`.
        scale_map: name of a scale map, or an `ops.ScaleMap`. Default: log s = u/(1 + |u|/ln 1000).
        conditioner: callable (identity half[, context]) -> parameters, its initialisation its own.
            It is given both with one batch shape (as views), or as they came if its attribute
            `broadcasts` is True. Default: `nn.MLP` with `hidden_features`.
        hidden_features: widths of the default conditioner.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value; the error names it.

    Source: Dinh et al., Density estimation using Real NVP (2017), eqs. 7–8; NICE (2015), eq. 8.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.AffineCoupling(3)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        mask: torch.Tensor | Sequence[bool] | None = None,
        scale_map: ScaleMap | str = "softclip",
        conditioner: Callable[..., nn.Module] | None = None,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        scale_map = ScaleMap.of(scale_map)
        per_feature = 1 if scale_map.kind == "additive" else 2
        super().__init__(features, context, mask, per_feature, conditioner, hidden_features)
        self.scale_map = scale_map

    def _op(self, x: torch.Tensor, params: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.affine_coupling(x, params, index=self.index, scale_map=self.scale_map, inverse=inverse)

    def _element(self) -> AffineElement:
        return AffineElement(self.scale_map)


class SplineCoupling(Coupling):
    """y_t = RQS(x_t; params_t) on the transformed half, log|det J| = Σ_t log RQS'(x_t).

    Outside [−bound, bound] the transform is the identity. The conditioner returns (…, T·(3K−1)):
    for each transformed feature K raw widths, K raw heights and K − 1 raw slopes. With the built-in
    conditioner and the default knot map the layer starts as the identity.

    Args:
        features, context, mask, conditioner, hidden_features: as for `AffineCoupling`.
        bins: number of bins K.
        bound: the spline acts on [−bound, bound].
        knot_map: as for `ops.rational_quadratic_spline`. Default: zuko's, "softclip", where
            raw zeros mean the identity.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value; the error names it.

    Source: Durkan et al., Neural Spline Flows (2019), eqs. 4–8.

    Example:
        >>> import torch
        >>> from flowkern import transforms
        >>> transform = transforms.SplineCoupling(3)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        mask: torch.Tensor | Sequence[bool] | None = None,
        bins: int = 8,
        bound: float = 5.0,
        knot_map: SoftplusKnots | SoftclipKnots | str = "softclip",
        conditioner: Callable[..., nn.Module] | None = None,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        check_spline(bins, bound, knot_map)
        super().__init__(features, context, mask, 3 * bins - 1, conditioner, hidden_features)
        self.bound, self.knot_map = float(bound), knot_map

    def _op(self, x: torch.Tensor, params: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.rational_quadratic_spline(
            x, params, index=self.index, bound=self.bound, knot_map=self.knot_map, inverse=inverse
        )

    def _element(self) -> SplineElement:
        return SplineElement(self.bound, knot_map=self.knot_map)


def _checked_mask(mask: Any, features: int) -> torch.Tensor:
    mask = alternating_mask(features) if mask is None else mask
    mask = mask if isinstance(mask, torch.Tensor) else torch.as_tensor(mask, device=_device())
    if mask.dtype != torch.bool or tuple(mask.shape) != (features,) or mask.is_meta:
        raise ValueError(
            f"mask: expected bool of shape ({features},), got {mask.dtype} {tuple(mask.shape)} on {mask.device}"
        )
    if not mask.any():
        raise ValueError("mask: expected True at one feature at least, got none to transform")
    return mask


def _device() -> torch.device:
    """The default device, or the CPU where that is meta: a mask needs values."""
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device

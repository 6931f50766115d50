"""y = a monotone rational-quadratic spline of x on the transformed features, with its log-det."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from flowkern import backends
from flowkern.ops import _arguments
from flowkern.ops._plain import unmapped
from flowkern.ops._rational_quadratic_spline.function import apply
from flowkern.ops._rational_quadratic_spline.kinds import TAILS, KnotMap, SoftclipKnots, SoftplusKnots
from flowkern.ops._rational_quadratic_spline.native import KERNELS

__all__ = ["TAILS", "KnotMap", "SoftclipKnots", "SoftplusKnots", "rational_quadratic_spline"]

_FLOAT32, _FLOAT64 = ((info.eps, info.tiny, info.max) for info in map(torch.finfo, (torch.float32, torch.float64)))
MAX_BINS = 256  # as in csrc, whose loops keep the bins of a tile in the first cache


def rational_quadratic_spline(
    x: torch.Tensor,
    params: torch.Tensor,
    *,
    index: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    tails: str = "identity",
    bound: float | Sequence[float] | torch.Tensor = 1.0,
    knot_map: SoftplusKnots | SoftclipKnots | str = "softplus",
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y_t = RQS(x_t; params_t) and log|det J| = Σ_t log RQS'(x_t), or the inverse of both.

    On the interval the spline is, in each of its K bins, a ratio of two quadratics that rises
    through the knots with given slopes; see the README of this folder. Features that are not
    transformed are copied. params is read where it lies, by its strides, without a copy.

    Args:
        x: (…, D), float32/float64, or float16/bfloat16 (computed in float32).
        params: (…, T, M) raw parameters [K widths | K heights | slopes], with M = 3K − 1 for
            tails "identity", 3K for "circular" and 3K + 1 for "none", K up to 256. Batch dimensions
            broadcast with those of x.
        index: int64 (T,), the transformed features in the order of params. Default: all D.
        mask: bool (D,), True at the transformed features, instead of `index`.
        tails: what lies outside the interval. "identity": y = x, and slope 1 at both ends.
            "circular": y = x, and the two ends share one free slope. "none": nothing, so that an
            x outside gives NaN; both end slopes are free.
        bound: B for the interval [−B, B] on both axes, a tensor (T,) of such B, or four numbers
            (left, right, bottom, top). Not differentiable.
        knot_map: from raw parameters to widths, heights and slopes: "softplus", "softclip", or a
            `SoftplusKnots` or `SoftclipKnots` with constants of its own.
        inverse: compute x from y instead.

    Returns:
        y (…, D) of x's dtype, and logabsdet (…,) in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the chosen backend cannot run here; or compiled code for the CPU finds an entry of
            index, mask or bound wrong. On a GPU, where looking at them would wait, the log-det is NaN then.

    Source: Durkan et al., Neural Spline Flows (2019), eqs. 4–8; Gregory & Delbourgo (1982).

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> x, params = torch.rand(5, 3), torch.randn(5, 3, 3 * 8 - 1)  # 8 bins for each feature
        >>> y, logabsdet = ops.rational_quadratic_spline(x, params, bound=2.0)
        >>> again, _ = ops.rational_quadratic_spline(y, params, bound=2.0, inverse=True)
        >>> torch.allclose(again, x, atol=1e-3)
        True
    """
    _arguments.check_tensors(x, params)
    bins = bins_of(params.shape[-1], tails)
    knots = KnotMap.of(knot_map)
    knots.check(bins)
    box, bounds = _interval(bound, tails, x, params)
    index = _arguments.resolve_index(index, mask, x, params.shape[-2])
    backend = backends.resolve(x.device.type, KERNELS, _arguments.half(x, params))
    flat_x, flat_params, batch = _arguments.flatten(x, params)
    code, *numbers = knots.numbers()
    plain = bool(inverse), TAILS[tails].code, *_arguments.constants(*box), code, *_arguments.constants(*numbers)
    y, logabsdet = apply(backend, plain, flat_x, flat_params, index, bounds)
    return _arguments.unflatten(y, logabsdet, batch)


def bins_of(per_feature: int, tails: str, name: str = "params") -> int:
    """K, from the number of parameters per feature; `name` is the argument that an error names."""
    if tails not in tuple(TAILS):
        raise ValueError(f"tails: expected one of {', '.join(TAILS)}, got {tails!r}")
    extra = TAILS[tails].more
    bins = (per_feature - extra) // 3  # divmod of dynamic sizes does not compile
    if 3 * bins + extra != per_feature or bins < 1:
        raise ValueError(
            f"{name}: tails {tails!r} needs 3K{extra:+d} parameters per feature for some number of "
            f"bins K >= 1, got {per_feature}".replace("+0 ", " ")
        )
    if bins > MAX_BINS:
        raise ValueError(f"{name}: expected at most {MAX_BINS} bins, got {bins}")
    return bins


def _interval(
    bound: Any, tails: str, x: torch.Tensor, params: torch.Tensor
) -> tuple[tuple[float, ...], torch.Tensor | None]:
    """Four numbers (left, right, bottom, top), and the per-feature bounds (T,) or None."""
    if isinstance(bound, torch.Tensor) and bound.requires_grad:
        raise ValueError("bound: gradients with respect to the bound are not supported")
    bound = unmapped("bound", bound)
    if isinstance(bound, torch.Tensor) and bound.dim() > 0:
        return (0.0, 1.0, 0.0, 1.0), _bounds(bound, x, params)
    return box_of(bound, tails, x.dtype), None


def box_of(
    bound: float | tuple[float, float, float, float], tails: str, dtype: torch.dtype = torch.float64
) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a scalar bound B or of four numbers, for x of that dtype."""
    try:
        box = tuple(map(float, bound if isinstance(bound, (tuple, list)) else (-bound, bound) * 2))
    except (TypeError, ValueError):
        box = ()
    if len(box) != 4 or not (_holds(box[0], box[1], dtype) and _holds(box[2], box[3], dtype)):
        raise ValueError(
            "bound: expected B > 0 or (left, right, bottom, top) with left < right and "
            f"bottom < top, all finite and distinct in the precision of x, {dtype}, got {bound}"
        )
    if tails != "none" and box[:2] != box[2:]:
        raise ValueError(f"bound: tails {tails!r} need the same interval on both axes, got {bound}")
    return box


def _holds(low: float, high: float, dtype: torch.dtype) -> bool:
    """Whether an interval has a length in the precision that kernels compute in."""
    least, shortest, longest = _FLOAT64 if dtype is torch.float64 else _FLOAT32
    size = high - low
    return shortest < size < longest and size > least * abs(low)


def _bounds(bound: torch.Tensor, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    features = params.shape[-2]
    if tuple(bound.shape) != (features,):
        raise ValueError(f"bound: expected shape ({features},), got {tuple(bound.shape)}")
    if bound.is_complex():
        raise TypeError(f"bound: expected a real dtype, got {bound.dtype}")
    if bound.device != x.device:
        raise ValueError(f"bound: expected device {x.device} as x has, got {bound.device}")
    given, bound = bound, bound.to(_arguments.compute_dtype(x, params)).contiguous()
    # Elsewhere kernels look at it: that of the CPU raises an error, the others give NaN.
    if bound.device.type == "cpu" and not torch.compiler.is_compiling():
        if not bool(((bound > 0) & (bound < math.inf)).all()):
            raise ValueError(f"bound: expected finite entries > 0 in the precision of x, got {given.tolist()}")
    return bound

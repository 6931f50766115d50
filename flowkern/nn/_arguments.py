"""Checks shared by conditioners, transforms and flows; each error names the argument."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from flowkern.ops._rational_quadratic_spline import MAX_BINS, KnotMap


def check_count(name: str, value: float, minimum: int) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {value}")


def check_choice(name: str, value: str | None, choices: dict | tuple[str | None, ...]) -> None:
    """Raise unless `value` is one of the names `choices`."""
    if not isinstance(value, str | None) or value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {expected}, got {value!r}")


def check_sizes(features: int, context: int, outputs: int, hidden_features: Any) -> Any:
    """Raise unless the four describe a conditioner; return hidden_features as a tuple."""
    check_count("features", features, 0)
    check_count("context", context, 0)
    check_count("outputs", outputs, 1)
    if isinstance(hidden_features, (str, int)):
        raise TypeError(f"hidden_features: expected a sequence of widths, got {hidden_features!r}")
    for width in hidden_features:
        check_count("hidden_features", width, 1)
    return tuple(hidden_features)


def check_one_width(hidden_features: Sequence[int]) -> int:
    """The one width of all residual blocks; raise if there are several, or none."""
    if len(set(hidden_features)) != 1:
        raise ValueError(f"hidden_features: expected one width for all residual blocks, got {hidden_features}")
    return hidden_features[0]


def check_features(name: str, x: torch.Tensor, features: int) -> None:
    """Raise unless x is a floating-point tensor (…, features)."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"{name}: expected shape (…, {features}), got {tuple(x.shape)}")


def check_context(context: torch.Tensor | None, width: int) -> None:
    """Raise unless context is a tensor (…, width), or None where width is 0."""
    if context is None and width:
        raise ValueError(f"context: expected a tensor (…, {width}), got None")
    if context is not None and not width:
        raise ValueError("context: expected None, because this was built with context=0")
    if context is not None:
        check_features("context", context, width)


def check_broadcast(name: str, shape: torch.Size, other_name: str, other: torch.Size) -> torch.Size:
    """The shape that two batch shapes broadcast to; the error names the first."""
    try:
        return torch.broadcast_shapes(shape, other)
    except RuntimeError:
        raise ValueError(
            f"{name}: batch shape {tuple(shape)} does not broadcast with that of {other_name}, {tuple(other)}"
        ) from None


def check_spline(bins: int, bound: float, knot_map: Any) -> None:
    """Raise unless the three describe a spline on [−bound, bound]."""
    check_count("bins", bins, 1)
    if bins > MAX_BINS:
        raise ValueError(f"bins: expected at most {MAX_BINS}, got {bins}")
    KnotMap.of(knot_map).check(bins)
    if not isinstance(bound, (int, float)) or not 0 < bound < math.inf:
        raise ValueError(f"bound: expected a finite number > 0, got {bound!r}")


def check_dtype(name: str, x: torch.Tensor, parameter: torch.Tensor) -> Any:
    """Raise unless x is where the parameters are and has their dtype, or autocast will bring both to one."""
    if x.device != parameter.device:
        raise ValueError(f"{name}: expected device {parameter.device} as the parameters have, got {x.device}")
    if x.dtype == parameter.dtype or torch.is_autocast_enabled(x.device.type):
        return
    raise TypeError(
        f"{name}: expected dtype {parameter.dtype} as the parameters have, got {x.dtype}; "
        f"convert one of them, for example with flow.to({x.dtype})"
    )

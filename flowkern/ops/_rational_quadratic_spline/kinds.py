"""The kinds of a spline: what lies outside its interval, and the maps from raw parameters to knots.

A kind's code is its place, as in csrc/common/kinds.h.
"""

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple


class Tails(NamedTuple):
    """code; more: how many parameters a feature has beyond 3K."""

    code: int
    more: int


_MORE = {"identity": -1, "circular": 0, "none": 1}
TAILS = {name: Tails(code, more) for code, (name, more) in enumerate(_MORE.items())}


class KnotMap:
    """A map from raw parameters to bin widths and heights, as shares of the interval, and knot slopes."""

    @staticmethod
    def of(knot_map: "KnotMap | str") -> "KnotMap":
        """A map from one, or from a name in `KNOT_MAPS`.

        Raises:
            TypeError, ValueError: knot_map is neither.
        """
        if isinstance(knot_map, KnotMap):
            return knot_map
        if not isinstance(knot_map, str):
            raise TypeError(f"knot_map: expected a knot map or its name, got {type(knot_map).__name__}")
        if knot_map not in KNOT_MAPS:
            raise ValueError(f"knot_map: expected one of {', '.join(KNOT_MAPS)}, got {knot_map!r}")
        return KNOT_MAPS[knot_map]()

    def check(self, bins: int) -> None:
        """Raise ValueError unless minima leave room for `bins` bins."""

    def numbers(self) -> tuple[int, float, float, float, float, float]:
        """(code, min_width, min_height, min_slope, c, scale), as the kernels take them; 0 for what it lacks."""
        raise NotImplementedError


@dataclass(frozen=True)
class SoftplusKnots(KnotMap):
    """The map of nflows and normflows, with K bins.

    A bin's share of the width is min_width + (1 − min_width·K)·softmax(scale·u), of the height alike; a
    slope is min_slope + softplus(u). `scale` is the fixed factor on raw widths and heights (nflows:
    1/√hidden_features).

    Raises:
        ValueError: a constant is out of range; `check` raises it where a minimum leaves no room for K bins.
    """

    min_width: float = 1e-3
    min_height: float = 1e-3
    min_slope: float = 1e-3
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_width", "min_height", "min_slope"):
            value = getattr(self, name)
            if not (isinstance(value, numbers.Real) and 0 <= value < 1):  # type: ignore[operator]
                raise ValueError(f"knot_map: {name} must be in [0, 1), got {value!r}")
        _check_scale(self.scale)

    def check(self, bins: int) -> None:
        """Raise ValueError unless the minima leave room for `bins` bins."""
        for name in ("min_width", "min_height"):
            minimum = getattr(self, name)
            if minimum * bins > 1:
                raise ValueError(
                    f"knot_map: {name} = {minimum} times {bins} bins exceeds 1, so the spline cannot be monotone"
                )

    def numbers(self) -> tuple[int, float, float, float, float, float]:
        """As `KnotMap.numbers`."""
        return _CODES["softplus"], self.min_width, self.min_height, self.min_slope, 0.0, self.scale


@dataclass(frozen=True)
class SoftclipKnots(KnotMap):
    """The map of zuko, with c = ln(1/slope_floor).

    A bin's share of the width is softmax(scale·u / (1 + 2·|scale·u|/c)), of the height alike; a slope is
    exp(u / (1 + |u|/c)), between slope_floor and 1/slope_floor.

    Raises:
        ValueError: a constant is out of range.
    """

    slope_floor: float = 1e-3
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.slope_floor, numbers.Real) and 0 < self.slope_floor < 1):
            raise ValueError(f"knot_map: slope_floor must be in (0, 1), got {self.slope_floor!r}")
        _check_scale(self.scale)

    def numbers(self) -> tuple[int, float, float, float, float, float]:
        """As `KnotMap.numbers`."""
        return _CODES["softclip"], 0.0, 0.0, 0.0, -math.log(self.slope_floor), self.scale


def _check_scale(scale: float) -> None:
    if not (isinstance(scale, numbers.Real) and 0 < scale < math.inf):
        raise ValueError(f"knot_map: scale must be finite and > 0, got {scale!r}")


KNOT_MAPS = {"softplus": SoftplusKnots, "softclip": SoftclipKnots}
_CODES = {name: code for code, name in enumerate(KNOT_MAPS)}

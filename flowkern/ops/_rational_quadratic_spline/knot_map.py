"""The constraint maps that turn raw parameters into widths, heights and slopes."""

import math
import numbers
from dataclasses import dataclass

KINDS = ("softplus", "softclip")


@dataclass(frozen=True)
class KnotMap:
    """Raw parameters → bin widths and heights as shares of the interval, and knot slopes.

    | kind | share of the width (height alike) | slope | who uses it |
    |---|---|---|---|
    | softplus | min_width + (1 − min_width·K)·softmax(scale·u) | min_slope + softplus(u) | nflows, normflows |
    | softclip | softmax(scale·u / (1 + 2·abs(scale·u)/c)), c = ln(1/slope_floor) | exp(u / (1 + abs(u)/c)) | zuko |

    `scale` is the fixed factor on raw widths and heights (nflows: 1/√hidden_features).

    Raises:
        ValueError: kind is unknown or a constant is out of range; `check` says when a minimum
            leaves no room for K bins.
    """

    kind: str = "softplus"
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_slope: float = 1e-3
    slope_floor: float = 1e-3
    scale: float = 1.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"knot_map: expected kind {' or '.join(KINDS)}, got {self.kind!r}")
        for name in ("min_width", "min_height", "min_slope"):
            value = getattr(self, name)
            if not (isinstance(value, numbers.Real) and 0 <= value < 1):
                raise ValueError(f"knot_map: {name} must be in [0, 1), got {value!r}")
        if not (isinstance(self.slope_floor, numbers.Real) and 0 < self.slope_floor < 1):
            raise ValueError(f"knot_map: slope_floor must be in (0, 1), got {self.slope_floor!r}")
        if not (isinstance(self.scale, numbers.Real) and 0 < self.scale < math.inf):
            raise ValueError(f"knot_map: scale must be finite and > 0, got {self.scale!r}")

    def check(self, bins):
        """Raise ValueError unless the minima leave room for `bins` bins."""
        for name in ("min_width", "min_height"):
            minimum = getattr(self, name)
            if self.kind == "softplus" and minimum * bins > 1:
                raise ValueError(
                    f"knot_map: {name} = {minimum} times {bins} bins exceeds 1, so the spline cannot be monotone"
                )

    def numbers(self):
        """(min_width, min_height, min_slope, softclip, scale); softclip = 0 is kind softplus."""
        if self.kind == "softclip":
            return 0.0, 0.0, 0.0, -math.log(self.slope_floor), self.scale
        return self.min_width, self.min_height, self.min_slope, 0.0, self.scale

"""The constraint maps that turn a raw parameter u into a positive scale s."""

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple


class _Kind(NamedTuple):
    code: int  # shared with csrc/affine_coupling/math.h and triton.py
    a: float
    b: float


# kind: (code, default a, default b), with v = prefactor·u
_KINDS = {
    "additive": _Kind(0, 0.0, 0.0),  # s = 1
    "exp": _Kind(1, 0.0, 0.0),  # log s = v
    "softclip": _Kind(2, math.log(1e3), 0.0),  # log s = v / (1 + |v|/a)
    "tanh": _Kind(3, 2.0, 0.0),  # log s = a·tanh v
    "atan": _Kind(4, 2.0 * 0.636, 0.0),  # log s = a·atan v
    "sigmoid": _Kind(5, 2.0, 1e-3),  # s = sigmoid(v + a) + b
    "reciprocal_sigmoid": _Kind(6, 2.0, 0.0),  # s = 1/(sigmoid(v + a) + b)
    "softplus": _Kind(7, 0.0, 1e-3),  # s = softplus(v + a) + b
}
SCALE_MAPS = tuple(_KINDS)


@dataclass(frozen=True)
class ScaleMap:
    """A map u → s with its constants; `v = prefactor·u`, and the shift is `shift_prefactor·b`.

    | kind | map | who uses it |
    |---|---|---|
    | additive | s = 1 | NICE |
    | exp | log s = v | normflows, Real NVP |
    | softclip | log s = v/(1 + |v|/a), a = ln 1000 | zuko |
    | tanh | log s = a·tanh v, a = 2 | FrEIA ("TANH"; its "SIGMOID" is prefactor ½) |
    | atan | log s = a·atan v, a = 2·0.636 | FrEIA ("ATAN") |
    | sigmoid | s = sigmoid(v + a) + b, a = 2, b = 1e-3 | nflows coupling, normflows MAF |
    | reciprocal_sigmoid | s = 1/(sigmoid(v + a) + b), a = 2, b = 0 | normflows coupling ("sigmoid") |
    | softplus | s = softplus(v + a) + b, a = 0, b = 1e-3 | nflows MAF |

    Raises:
        ValueError: kind is unknown, or a constant makes the scale negative or infinite.
    """

    kind: str
    a: float | None = None
    b: float | None = None
    prefactor: float = 1.0
    shift_prefactor: float = 1.0

    def __post_init__(self):
        if self.kind not in SCALE_MAPS:
            raise ValueError(f"scale_map: expected one of {', '.join(_KINDS)}, got {self.kind!r}")
        for name in ("prefactor", "shift_prefactor", "a", "b"):
            value = getattr(self, name)
            is_default = value is None and name in ("a", "b")
            if not is_default and not (isinstance(value, numbers.Real) and -math.inf < value < math.inf):
                raise ValueError(f"scale_map: {name} must be a finite number, got {value!r}")
        if self.kind in ("softclip", "tanh", "atan") and self._a() <= 0:
            raise ValueError(f"scale_map: {self.kind} needs a > 0, got {self.a}")
        if self._b() < 0:
            raise ValueError(f"scale_map: {self.kind} needs b >= 0, got {self.b}")

    @staticmethod
    def of(scale_map: "ScaleMap | str") -> "ScaleMap":
        """A ScaleMap from one, or from the name of its kind."""
        if isinstance(scale_map, ScaleMap):
            return scale_map
        return ScaleMap(scale_map)

    def _a(self):
        return _KINDS[self.kind].a if self.a is None else float(self.a)

    def _b(self):
        return _KINDS[self.kind].b if self.b is None else float(self.b)

    def numbers(self):
        """(code, a, b, prefactor, shift_prefactor), as the kernels take them."""
        return _KINDS[self.kind].code, self._a(), self._b(), self.prefactor, self.shift_prefactor

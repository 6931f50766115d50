"""The constraint maps that turn a raw parameter u into a positive scale s."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F


def _log_sigmoid(v: torch.Tensor, a: float, b: float) -> torch.Tensor:
    return F.logsigmoid(v + a) if b == 0 else torch.log(torch.sigmoid(v + a) + b)


def _log_softplus(v: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Finite where softplus z = e·(1 − e/2 + …), e = exp z, underflows."""
    z = v + a
    if b != 0:
        return torch.log(F.softplus(z, threshold=40) + b)
    far, near = z.clamp(max=-20), z.clamp(min=-20)
    return torch.where(z < -20, far - torch.exp(far) / 2, torch.log(F.softplus(near, threshold=40)))


class Kind(NamedTuple):
    """A kind of scale map. Its code is its place in `KINDS`, as in csrc/common/kinds.h.

    log_scale: log s as a function of (v, a, b), with v = prefactor·u.
    a, b: their defaults.
    positive_a: whether a must be positive.
    """

    log_scale: Callable
    a: float = 0.0
    b: float = 0.0
    positive_a: bool = False


KINDS = {
    "additive": Kind(lambda v, a, b: torch.zeros_like(v)),
    "exp": Kind(lambda v, a, b: v),
    "softclip": Kind(lambda v, a, b: v / (1 + v.abs() / a), math.log(1e3), positive_a=True),
    "tanh": Kind(lambda v, a, b: a * torch.tanh(v), 2.0, positive_a=True),
    "atan": Kind(lambda v, a, b: a * torch.atan(v), 2.0 * 0.636, positive_a=True),
    "sigmoid": Kind(_log_sigmoid, 2.0, 1e-3),
    "reciprocal_sigmoid": Kind(lambda v, a, b: -_log_sigmoid(v, a, b), 2.0),
    "softplus": Kind(_log_softplus, 0.0, 1e-3),
}
SCALE_MAPS = tuple(KINDS)
CODES = {kind: code for code, kind in enumerate(KINDS)}
ADDITIVE = CODES["additive"]  # it has no raw scale


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

    def __post_init__(self) -> None:
        if self.kind not in SCALE_MAPS:
            raise ValueError(f"scale_map: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("prefactor", "shift_prefactor", "a", "b"):
            value = getattr(self, name)
            is_default = value is None and name in ("a", "b")
            if not is_default and not (isinstance(value, numbers.Real) and -math.inf < value < math.inf):  # type: ignore[operator]
                raise ValueError(f"scale_map: {name} must be a finite number, got {value!r}")
        if KINDS[self.kind].positive_a and self._a() <= 0:
            raise ValueError(f"scale_map: {self.kind} needs a > 0, got {self.a}")
        if self._b() < 0:
            raise ValueError(f"scale_map: {self.kind} needs b >= 0, got {self.b}")

    @staticmethod
    def of(scale_map: "ScaleMap | str") -> "ScaleMap":
        """A ScaleMap from one, or from the name of its kind."""
        if isinstance(scale_map, ScaleMap):
            return scale_map
        return ScaleMap(scale_map)

    def _a(self) -> float:
        return KINDS[self.kind].a if self.a is None else float(self.a)

    def _b(self) -> float:
        return KINDS[self.kind].b if self.b is None else float(self.b)

    def numbers(self) -> tuple[float, ...]:
        """(code, a, b, prefactor, shift_prefactor), as the kernels take them."""
        return CODES[self.kind], self._a(), self._b(), self.prefactor, self.shift_prefactor

"""The element transforms h that an autoregressive layer applies to each feature."""

from typing import Any, NamedTuple

import torch

from flowkern.ops._affine_coupling.scale_map import ScaleMap
from flowkern.ops._rational_quadratic_spline import TAILS, KnotMap, SoftclipKnots, SoftplusKnots, bins_of, box_of

ELEMENTS = ("affine", "spline")  # an element's code is its place, as in csrc/common/kinds.h
AFFINE, SPLINE = range(len(ELEMENTS))


class AffineElement(NamedTuple):
    """h(x) = s(u)·x + b, with parameters [b, u] per feature, or [b] where the map is additive.

    scale_map: a `ScaleMap`, or the name of its kind.
    scale_first: whether the parameters are [u, b].
    """

    scale_map: ScaleMap | str = "exp"
    scale_first: bool = False

    def parameters(self, outputs: int, features: int, dtype: torch.dtype = torch.float64) -> int:
        """Parameters per feature of x of that dtype; raises ValueError unless `outputs` is that many for each."""
        wanted = 1 if ScaleMap.of(self.scale_map).kind == "additive" else 2
        if outputs != wanted * features:
            raise ValueError(
                f"layers: the last must have {wanted} output(s) for each of {features} features, got {outputs}"
            )
        return wanted

    def numbers(self) -> Any:
        """(AFFINE, (the scale map's code, whether the scale comes first), constants), as the kernels take them."""
        code, *constants = ScaleMap.of(self.scale_map).numbers()
        return AFFINE, (code, int(self.scale_first)), tuple(constants)


class SplineElement(NamedTuple):
    """h = a rational-quadratic spline, with parameters [K widths | K heights | slopes] per feature.

    bound, tails, knot_map: as for `rational_quadratic_spline`, with one interval for all features.
    """

    bound: float | tuple = 1.0
    tails: str = "identity"
    knot_map: SoftplusKnots | SoftclipKnots | str = "softplus"

    def parameters(self, outputs: int, features: int, dtype: torch.dtype = torch.float64) -> int:
        """Parameters per feature of x of that dtype; raises ValueError unless `outputs` fits some number of bins."""
        box_of(self.bound, self.tails, dtype)
        per_feature = outputs // features  # divmod of dynamic sizes does not compile
        if per_feature * features != outputs:
            raise ValueError(f"layers: the outputs of the last, {outputs}, are no multiple of {features} features")
        KnotMap.of(self.knot_map).check(bins_of(per_feature, self.tails, "layers"))
        return per_feature

    def numbers(self) -> tuple[int, tuple[int, int], tuple[float, ...]]:
        """(SPLINE, (the codes of tails and knot map), constants), as the kernels take them."""
        box = box_of(self.bound, self.tails)
        code, *constants = KnotMap.of(self.knot_map).numbers()
        return SPLINE, (TAILS[self.tails].code, code), (*box, *constants)

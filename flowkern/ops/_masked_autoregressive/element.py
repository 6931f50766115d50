"""The element transforms h that an autoregressive layer applies to each feature."""

from typing import NamedTuple

import torch

from flowkern.ops._affine_coupling.scale_map import ScaleMap
from flowkern.ops._rational_quadratic_spline import TAILS, KnotMap, bins_of, box_of

SPLINE = 8  # the code after those of the scale maps


class AffineElement(NamedTuple):
    """h(x) = s(u)·x + b, with parameters [b, u] per feature, or [b] where the map is additive.

    scale_map: a `ScaleMap`, or the name of its kind.
    scale_first: whether the parameters are [u, b].
    """

    scale_map: ScaleMap | str = "exp"
    scale_first: bool = False

    def parameters(self, outputs, features, dtype=torch.float64):
        """Parameters per feature of x of that dtype; raises ValueError unless `outputs` is that many for each."""
        wanted = 1 if ScaleMap.of(self.scale_map).kind == "additive" else 2
        if outputs != wanted * features:
            raise ValueError(
                f"layers: the last must have {wanted} output(s) for each of {features} features, got {outputs}"
            )
        return wanted

    def numbers(self):
        """(code, whether the scale comes first, tails, constants), as the kernels take them."""
        code, *constants = ScaleMap.of(self.scale_map).numbers()
        return code, bool(self.scale_first), 0, tuple(constants)


class SplineElement(NamedTuple):
    """h = a rational-quadratic spline, with parameters [K widths | K heights | slopes] per feature.

    bound, tails, knot_map: as for `rational_quadratic_spline`, with one interval for all features.
    """

    bound: float | tuple = 1.0
    tails: str = "identity"
    knot_map: KnotMap = KnotMap()

    def parameters(self, outputs, features, dtype=torch.float64):
        """Parameters per feature of x of that dtype; raises ValueError unless `outputs` fits some number of bins."""
        box_of(self.bound, self.tails, dtype)
        per_feature = outputs // features  # divmod of dynamic sizes does not compile
        if per_feature * features != outputs:
            raise ValueError(f"layers: the outputs of the last, {outputs}, are no multiple of {features} features")
        self.knot_map.check(bins_of(per_feature, self.tails, "layers"))
        return per_feature

    def numbers(self):
        """(code, False, tails, constants), as the kernels take them."""
        box = box_of(self.bound, self.tails)
        return SPLINE, False, TAILS[self.tails][0], (*box, *self.knot_map.numbers())

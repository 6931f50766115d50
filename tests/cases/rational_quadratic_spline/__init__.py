"""The cases of this op, and their comparison with the float64 reference: those of the couplings."""

from dataclasses import replace

import torch

from tests.cases.coupling import SPLINES as CASES
from tests.cases.coupling import check, results
from tests.tolerances import Units

__all__ = ["CASES", "EDGES", "LABEL", "TOLERANCES", "check", "results"]
LABEL = "spline"
# A unit is drawn from 8 samples: the worst of 10⁵ elements is far out. Measured worst at spread 6, 20 000 rows of
# 5 features, float32: y 2.8, logabsdet 5.2, grad_x 59, grad_params 59 on cpu, and 2.2, 16.6, 26, 58 in the reference.
# Float64 is measured at spread 1 (on cpu 2.5, 5.7, 3.2, 7.2), where the reference's own rounding, for which there is no
# better evaluation at hand, is of the size of the kernel's.
TOLERANCES = {
    torch.float64: Units(8, 16, 16, 16),
    torch.float32: Units(8, 32, 128, 128),
    torch.float16: Units(1, 1, 2, 2),
    torch.bfloat16: Units(1, 1, 2, 2),
}
# Sizes about the edges of warps, blocks, segments (512 elements) and stages.
EDGES = {
    "k4": replace(CASES["k8"], bins=4),
    "rows-257": replace(CASES["k8"], batch=(257,)),
    "k33-rows-257": replace(CASES["k33"], batch=(257,)),
    "k10-circular": replace(CASES["circular"], bins=10, batch=(29,)),
    "k16-none": replace(CASES["none"], bins=16, batch=(29,)),
    "softclip-k4": replace(CASES["softclip"], bins=4, batch=(29,)),
    "softclip-k16": replace(CASES["softclip"], bins=16, batch=(29,)),
    "softclip-k10": replace(CASES["softclip"], bins=10),
    "softclip-k33": replace(CASES["softclip"], bins=33, batch=(29,)),
    "k10-index": replace(CASES["index"], bins=10),
    "k16-index": replace(CASES["index"], bins=16),
    **{f"softclip-k{k}-sliced": replace(CASES["softclip"], bins=k, layout="sliced") for k in (4, 8, 10, 16)},
    # Contiguous: parameters that do and do not fill sixteen bytes, segments of more than one pass.
    **{
        f"{name}-k{k}": replace(CASES[name], bins=k, batch=(29,))
        for name in ("circular", "softclip_circular")
        for k in (4, 16)
    },
    "three-features": replace(CASES["k8"], batch=(257,), width=3, features=3),
    "three-passes": replace(CASES["k8"], batch=(5,), width=96, features=96),
    "circular-three-passes": replace(CASES["circular"], batch=(5,), width=96, features=96),
    "wide": replace(CASES["k8"], batch=(2,), width=600, features=600),
    "wide-k3": replace(CASES["k3"], batch=(3,), width=1201, features=600, select="mask"),
    "k256": replace(CASES["softclip"], bins=256, batch=(3,)),
    # Parameters that do not go through shared memory, so that fewer barriers hide a missing one.
    "k256-wide": replace(CASES["softclip"], bins=256, batch=(1,), width=293, features=289, select="index"),
}

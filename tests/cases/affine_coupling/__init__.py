"""The cases of this op, and their comparison with the float64 reference: those of the couplings."""

from dataclasses import replace

import torch

from flowkern.ops._affine_coupling import SCALE_MAPS
from tests.cases.coupling import AFFINES as CASES
from tests.cases.coupling import check, results
from tests.tolerances import Units

__all__ = ["CASES", "EDGES", "LABEL", "TOLERANCES", "check", "results"]
LABEL = "affine"
# A unit is drawn from 8 samples: the worst of 10⁵ elements is far out. Measured worst at spread 6, 20 000 rows of
# 5 features, float32: y 2.5, logabsdet 1.6, grad_x 3.2, grad_params 3.1 on cpu and 2.4, 1.2, 4.0, 3.4 in the reference.
TOLERANCES = {
    torch.float64: Units(4, 4, 8, 8),
    torch.float32: Units(4, 4, 8, 8),
    torch.float16: Units(1, 1, 1, 1),
    torch.bfloat16: Units(1, 1, 1, 1),
}
# Sizes about the edges of warps, blocks, segments (512 elements) and stages.
EDGES = {
    "rows-257": replace(CASES["exp"], batch=(257,)),
    "wide": replace(CASES["exp"], batch=(3,), width=1201, features=600, select="index"),
    "one-feature": replace(CASES["exp"], batch=(257,), width=1, features=1),
    # Four features at a time.
    **{f"{kind}-vectors": replace(CASES[kind], width=8, features=8) for kind in SCALE_MAPS},
    "vectors-scale_first": replace(CASES["scale_first"], batch=(257,), width=12, features=12),
    "vectors-chunked": replace(CASES["exp"], layout="chunked", batch=(257,), width=12, features=12),
    "vectors-chunked-scale_first": replace(CASES["scale_first"], layout="chunked", width=8, features=8),
    "vectors-wide": replace(CASES["exp"], batch=(3,), width=600, features=600),
}

"""The cases of this op, and their comparison with the float64 reference: those of the couplings."""

from dataclasses import replace

from flowkern.ops._affine_coupling import SCALE_MAPS
from tests import tolerances
from tests.cases.coupling import AFFINES as CASES
from tests.cases.coupling import check, results

__all__ = ["CASES", "EDGES", "LABEL", "TOLERANCES", "check", "results"]
LABEL = "affine"
TOLERANCES = (tolerances.TABLE["affine_coupling"],)
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

"""The cases of this op, and their comparison with the float64 reference: those of the couplings."""

from dataclasses import replace

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
}

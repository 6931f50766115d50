"""The cases of this op, and their comparison with the float64 reference: those of the couplings."""

from tests.cases.coupling import SPLINES as CASES
from tests.cases.coupling import check, results

__all__ = ["CASES", "LABEL", "check", "results"]
LABEL = "spline"

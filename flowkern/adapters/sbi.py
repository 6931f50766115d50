"""Estimators of sbi 0.27 that no kernel computes: `explain` says so.

The flows inside its others are nflows' and zuko's.
"""

import re

from flowkern.adapters._plan import Plan, qualified_name

HANDLES = ""
_PACKAGE = re.compile(r"(?:.*\.)?sbi\.")
_VECTOR_FIELD = "neural_nets.estimators.base.ConditionalVectorFieldEstimator"


def plan(module):
    """The `Plan` for an estimator by a vector field (FMPE, NPSE), or None for other modules."""
    if _VECTOR_FIELD not in (qualified_name(_PACKAGE, cls) for cls in type(module).__mro__):
        return None
    return Plan({}, "its vector field has no fused kernel: it normalises the state and conditions each layer")

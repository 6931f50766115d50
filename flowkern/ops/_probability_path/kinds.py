"""The kinds of paths. A kind's code is its place, as in csrc/common/kinds.h."""

PATHS = {"conditional": 0, "target": 1, "variance_preserving": 2, "schroedinger_bridge": 3}
CONDITIONAL, TARGET, VARIANCE_PRESERVING, SCHROEDINGER_BRIDGE = PATHS.values()

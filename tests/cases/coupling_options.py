"""The options that the couplings share, see tests/options.py."""

from tests.cases import coupling
from tests.cases.space import DIRECTED, text

COUPLING = {
    **DIRECTED,
    "select": ("all", "index", "mask"),
    "features": (1, 2, 5, 17),
    "layout": ("contiguous", *coupling._LAYOUTS),
}


def case(op, choice, **more):
    width = choice["features"] if choice["select"] == "all" else 2 * choice["features"] + 1
    layout = choice["layout"] if choice["batch"] else "contiguous"
    return coupling.Case(
        text(choice), op, (choice["batch"],), width, choice["features"], choice["select"], layout, **more
    )  # fmt: skip

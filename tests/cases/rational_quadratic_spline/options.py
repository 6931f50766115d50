"""Every option of the op, see tests/options.py."""

import inspect

import torch

from flowkern import ops
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS
from tests.cases import coupling, coupling_options
from tests.cases.space import BINS, Space


def _case(choice):
    bound = choice["bound"]
    if bound == "of features":
        bound = torch.linspace(0.5, 4.0, choice["features"])
    if bound == "box":
        bound = coupling.BOX if choice["tails"] == "none" else (-1.0, 2.0, -1.0, 2.0)
    options = {"tails": choice["tails"], "bound": bound, "knot_map": choice["knot_map"]}
    return coupling_options.case("rational_quadratic_spline", choice, bins=choice["bins"], options=options)


SPACE = Space(
    {
        **coupling_options.COUPLING,
        "tails": tuple(TAILS),
        "knot_map": tuple(KNOT_MAPS),
        "bins": BINS,
        "bound": (3.0, "of features", "box"),
    },
    _case,
)
ARGUMENTS = {*inspect.signature(ops.rational_quadratic_spline).parameters}
DATA = {"x", "params", "index", "mask"}  # what has no option of its own, or is fixed by another option

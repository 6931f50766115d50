"""Which modules run as one program of `ops.flow_program`, and with what tensors.

For the adapters of other libraries and for flowkern's own transforms.
"""

from flowkern.programs.fusion import Found, Fusion, hooked
from flowkern.programs.network import NO_TERM, layer, missing, outputs, reflections, side_by_side, slots, stacked
from flowkern.programs.program import Apart, Computed, Part, Reader, Segment, known, on_rows, pieces, run, why

__all__ = [
    "NO_TERM",
    "Apart",
    "Computed",
    "Found",
    "Fusion",
    "Part",
    "Reader",
    "Segment",
    "hooked",
    "known",
    "layer",
    "missing",
    "on_rows",
    "outputs",
    "pieces",
    "reflections",
    "run",
    "side_by_side",
    "slots",
    "stacked",
    "why",
]

"""Every table of the benchmark."""

from bench import affine_coupling, flows, rational_quadratic_spline


def tables(quick):
    """The tables in order; `quick` has tiny sizes and nothing compiled, to prove that all runs."""
    tiny, tiny_flows = {}, {}
    if quick:
        tiny = {"batches": (1, 64), "compiled": ()}
        tiny_flows = {"training": (8,), "inference": (8,), "compiled": ()}
    return [
        *rational_quadratic_spline.tables(**tiny),
        *affine_coupling.tables(**tiny),
        *flows.tables(**tiny_flows),
    ]

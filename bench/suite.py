"""Every table of the benchmark."""

from bench import affine_coupling, flows, rational_quadratic_spline


def tables(quick):
    """The tables in order; `quick` has tiny sizes and nothing compiled, to prove that all runs."""
    return [t for m in (rational_quadratic_spline, affine_coupling, flows) for t in m.tables(quick)]

"""Every table of the benchmark."""

from bench import (
    affine_coupling,
    flows,
    masked_autoregressive,
    posterior_maf,
    probability_path,
    rational_quadratic_spline,
)

_MODULES = (
    rational_quadratic_spline, affine_coupling, masked_autoregressive, probability_path, flows,
    posterior_maf,
)  # fmt: skip


def tables(quick):
    """The tables in order; `quick` has tiny sizes and nothing compiled, to prove that all runs."""
    return [t for m in _MODULES for t in m.tables(quick)]

"""Every table of the benchmark."""

from bench import (
    affine_coupling,
    flows,
    masked_autoregressive,
    neural_ode,
    posterior_maf,
    probability_path,
    rational_quadratic_spline,
    runge_kutta_stage,
)

_MODULES = (
    rational_quadratic_spline, affine_coupling, masked_autoregressive, neural_ode, probability_path,
    runge_kutta_stage, flows, posterior_maf,
)  # fmt: skip


def tables(quick):
    """The tables in order; `quick` has tiny sizes and nothing compiled, to prove that all runs."""
    if not quick:
        return [table for module in _MODULES for table in module.tables()]
    return [
        *rational_quadratic_spline.tables(batches=(1, 64), compiled=()),
        *affine_coupling.tables(batches=(1, 64), compiled=()),
        *masked_autoregressive.tables(batches=(4,), costs=(8, 16), compiled=()),
        *neural_ode.tables(batches=(3,), compiled=()),
        *probability_path.tables(batches=(1, 64), compiled=()),
        *runge_kutta_stage.tables(batches=(1, 64), compiled=()),
        *flows.tables(training=(8,), inference=(8,), compiled=()),
        *posterior_maf.tables(batches=(4,)),
    ]

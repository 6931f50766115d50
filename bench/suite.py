"""Every table of the benchmark."""

from bench import (
    affine_coupling,
    cnf,
    flows,
    masked_autoregressive,
    neural_ode,
    odeint,
    posterior_maf,
    probability_path,
    rational_quadratic_spline,
    runge_kutta_stage,
    whole_flows,
)

_MODULES = (
    rational_quadratic_spline, affine_coupling, masked_autoregressive, neural_ode, odeint,
    runge_kutta_stage, probability_path, flows, cnf, posterior_maf,
    whole_flows,
)  # fmt: skip


def tables(quick):
    """The tables in order; `quick` has tiny sizes and nothing compiled, to prove that all runs."""
    if not quick:
        return [table for module in _MODULES for table in module.tables()]
    return [
        *rational_quadratic_spline.tables(batches=(1, 64), compiled=()),
        *affine_coupling.tables(batches=(1, 64), compiled=()),
        *masked_autoregressive.tables(batches=(4,), costs=(8, 16), compiled=()),
        *neural_ode.tables(batches=(3,), compiled=(), memory=(4,)),
        *odeint.tables(batches=(3,), compiled=()),
        *probability_path.tables(batches=(1, 64), compiled=()),
        *runge_kutta_stage.tables(batches=(1, 64), compiled=()),
        *flows.tables(training=(8,), inference=(8,), compiled=()),
        *cnf.tables(batches=(8,)),
        *posterior_maf.tables(batches=(4,)),
        *whole_flows.tables(training=(4,), inference=(2,)),
    ]

"""Every table of the benchmark."""

from bench.tables import MODULES


def tables(quick):
    """The tables in order; `quick` has tiny sizes and nothing compiled, to prove that all runs."""
    return [table for module in MODULES for table in module.tables(**(module.QUICK if quick else {}))]

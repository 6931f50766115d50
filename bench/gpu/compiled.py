"""What torch.compile makes of the libraries: the last part, for it takes minutes."""

from bench.gpu import tables

WANTED = (("affine_coupling-forward", 2**20), ("rational_quadratic_spline-forward", 2**18), ("nsf-log_prob", 2048))
SECONDS = 30


def items(gate):
    """None in a dry run: compilation for a CPU says nothing, and takes as long."""
    return [] if gate.dry_run else tables.items(WANTED, SECONDS, gate, tables.COMPILERS)


def section(results):
    return tables.section("torch.compile", results)

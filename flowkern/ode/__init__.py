"""Solvers of ordinary differential equations."""

from flowkern.ode.adjoint import odeint_adjoint
from flowkern.ode._odeint import odeint
from flowkern.ops._tableau import TABLEAUX, Tableau, tableau
from flowkern.ops._status import SolverError, SolverWarning, Status

__all__ = [
    "TABLEAUX",
    "SolverError",
    "SolverWarning",
    "Status",
    "Tableau",
    "odeint",
    "odeint_adjoint",
    "tableau",
]

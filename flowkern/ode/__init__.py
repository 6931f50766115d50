"""Solvers of ordinary differential equations."""

from flowkern.ode._odeint import odeint
from flowkern.ode.adjoint import odeint_adjoint
from flowkern.ops._status import SolverError, SolverWarning, Status
from flowkern.ops._tableau import TABLEAUX, Tableau, tableau

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

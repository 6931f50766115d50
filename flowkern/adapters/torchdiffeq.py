"""flowkern's methods for `torchdiffeq.odeint` and `odeint_adjoint`, by names of their own.

    from flowkern.adapters import torchdiffeq as fused
    fused.register()
    torchdiffeq.odeint(func, y0, t, method="flowkern_rk4", options={"step_size": 0.1})

Code that calls torchdiffeq changes the name of the method and nothing else. torchdiffeq still does
what it does around a solver: it flattens tuples, reverses time, and solves the adjoint equation.
"""

from flowkern.ode import TABLEAUX, odeint
from flowkern.ode.problem import CALLBACKS

PREFIX = "flowkern_"


def register():
    """Put "flowkern_" + name for every method of `flowkern.odeint` into torchdiffeq's table.

    Raises:
        ImportError: torchdiffeq is not installed, or keeps no such table (0.2.5 does).
    """
    _solvers().update({PREFIX + name: _solver(name) for name in TABLEAUX})


def unregister():
    """Take them out again."""
    solvers = _solvers()
    for name in TABLEAUX:
        solvers.pop(PREFIX + name, None)


def _solvers():
    from torchdiffeq._impl.odeint import SOLVERS

    return SOLVERS


def _solver(method):
    """A solver as torchdiffeq builds it: of one function, one state and options."""

    class Solver:
        def __init__(self, func, y0, rtol, atol, **options):
            from torchdiffeq._impl.misc import _null_callback, _rms_norm

            self.func, self.y0 = func, y0
            for name in CALLBACKS:
                if getattr(func, name) is _null_callback:  # what torchdiffeq puts where there is none
                    delattr(func, name)
            fixed = TABLEAUX[method].b_error is None
            if fixed or options.get("norm") is _rms_norm:  # the default of both, which flowkern has in one pass
                options.pop("norm", None)  # torchdiffeq passes one to grids too, where there is no step control
            self.call = dict(rtol=rtol, atol=atol, method=method, options=options)

        def integrate(self, t):
            return odeint(self.func, self.y0, t, **self.call)

        def integrate_until_event(self, t0, event_fn):
            raise NotImplementedError(
                f"method: {PREFIX + method!r} has no events; take one of torchdiffeq's own for them, such as 'dopri5'"
            )

        @classmethod
        def valid_callbacks(cls):
            fixed = TABLEAUX[method].b_error is None
            return {"callback_step"} if fixed else set(CALLBACKS)

    return Solver

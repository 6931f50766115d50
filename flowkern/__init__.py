"""flowkern: fused kernels that make normalizing flows in PyTorch fast."""

from typing import Any

from flowkern import backends, ops
from flowkern.backends import backend

__version__ = "0.1.0"
__all__ = [
    "SolverError",
    "accelerate",
    "adapters",
    "backend",
    "backends",
    "bases",
    "distributions",
    "explain",
    "flows",
    "matching",
    "nn",
    "ode",
    "ode_error",
    "odeint",
    "odeint_adjoint",
    "ops",
    "profile",
    "restore",
    "transforms",
    "verify",
]

_LAZY = {
    "accelerate": ("flowkern.verification", "accelerate"),
    "adapters": ("flowkern.adapters", None),
    "bases": ("flowkern.bases", None),
    "distributions": ("flowkern.distributions", None),
    "explain": ("flowkern.adapters", "explain"),
    "profile": ("flowkern.profiling", "profile"),
    "restore": ("flowkern.adapters", "restore"),
    "flows": ("flowkern.flows", None),
    "matching": ("flowkern.matching", None),
    "nn": ("flowkern.nn", None),
    "ode": ("flowkern.ode", None),
    "ode_error": ("flowkern.adapters", "ode_error"),
    "odeint": ("flowkern.ode", "odeint"),
    "odeint_adjoint": ("flowkern.ode", "odeint_adjoint"),
    "SolverError": ("flowkern.ode", "SolverError"),
    "transforms": ("flowkern.transforms", None),
    "verify": ("flowkern.verification", "verify"),
}


def __getattr__(name: str) -> Any:
    """Import the flow API, the solvers and the adapters on first use, so that `import flowkern` stays cheap."""
    if name not in _LAZY:
        raise AttributeError(f"module 'flowkern' has no attribute {name!r}")
    from importlib import import_module

    module_name, attribute = _LAZY[name]
    module = import_module(module_name)
    return module if attribute is None else getattr(module, attribute)

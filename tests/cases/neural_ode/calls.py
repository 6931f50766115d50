"""The op as a function of one tensor: BATCHED of x (2, 3)."""

from tests.cases.flow import log_prob

BATCHED = {
    "neural_ode": lambda: log_prob("CNF", steps=2),
    "neural_ode adjoint": lambda: log_prob("CNF", steps=2, gradient="adjoint"),
}

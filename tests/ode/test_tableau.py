"""The tableaux meet the order conditions of Runge-Kutta methods (Hairer, Nørsett, Wanner, II.2).

These are written out to order 5; orders above are measured in test_adaptive.py.
"""

import numpy
import pytest
from torchdiffeq._impl.odeint import SOLVERS

from flowkern.ops._tableau import TABLEAUX, tableau

# Rooted trees by order: (elementary weight of the stages, 1/density) with a, c as arrays.
CONDITIONS = {
    1: [(lambda a, c: c**0, 1)],
    2: [(lambda a, c: c, 1 / 2)],
    3: [(lambda a, c: c**2, 1 / 3), (lambda a, c: a @ c, 1 / 6)],
    4: [
        (lambda a, c: c**3, 1 / 4),
        (lambda a, c: c * (a @ c), 1 / 8),
        (lambda a, c: a @ c**2, 1 / 12),
        (lambda a, c: a @ a @ c, 1 / 24),
    ],
    5: [
        (lambda a, c: c**4, 1 / 5),
        (lambda a, c: c**2 * (a @ c), 1 / 10),
        (lambda a, c: (a @ c) ** 2, 1 / 20),
        (lambda a, c: c * (a @ c**2), 1 / 15),
        (lambda a, c: a @ c**3, 1 / 20),
        (lambda a, c: c * (a @ a @ c), 1 / 30),
        (lambda a, c: a @ (c * (a @ c)), 1 / 40),
        (lambda a, c: a @ a @ c**2, 1 / 60),
        (lambda a, c: a @ a @ a @ c, 1 / 120),
    ],
}

HIGHEST = max(CONDITIONS)
ADAPTIVE = [method for method in TABLEAUX.values() if method.b_error]
DENSE = {"adaptive_heun": 1, "fehlberg2": 2, "bosh3": 3, "dopri5": 4, "tsit5": 4, "dopri8": HIGHEST}


def arrays(method):
    stages = len(method.c)
    a = numpy.array([[*row, *[0.0] * (stages - len(row))] for row in method.a])
    return a, numpy.array(method.c)


def residual(method, weights, order, theta=1.0):
    a, c = arrays(method)
    return max(
        abs(weights @ stage(a, c) - density * theta**p) for p in range(1, order + 1) for stage, density in CONDITIONS[p]
    )


@pytest.mark.parametrize("method", TABLEAUX.values(), ids=lambda m: m.name)
def test_order(method):
    a, c = arrays(method)
    assert abs(a.sum(1) - c).max() < 1e-14
    b = numpy.array(method.b)
    assert residual(method, b, min(method.order, HIGHEST)) < 1e-14
    if method.order < HIGHEST:
        assert residual(method, b, method.order + 1) > 1e-3


@pytest.mark.parametrize("method", ADAPTIVE, ids=lambda m: m.name)
def test_adaptive_methods(method):
    """The embedded method has one order less; the last stage is the next step's first."""
    b, difference = numpy.array(method.b), numpy.array(method.b_error)
    assert residual(method, b - difference, min(method.order - 1, HIGHEST)) < 1e-13
    if method.order <= HIGHEST:
        assert residual(method, b - difference, method.order) > 1e-4
    last_is_next = method.a[-1] == method.b[:-1] and method.b[-1] == 0
    assert method.c[-1] == 1 and last_is_next == (method.name not in ("adaptive_heun", "fehlberg2"))


@pytest.mark.parametrize("method", ADAPTIVE, ids=lambda m: m.name)
@pytest.mark.parametrize("theta", [0.3, 0.5, 0.8, 1.0])
def test_dense_output(method, theta):
    dense = numpy.array(method.dense)
    weights = dense @ theta ** numpy.arange(1, 1 + dense.shape[1])
    assert residual(method, weights, DENSE[method.name], theta) < 1e-13
    if theta == 1:
        assert abs(weights - method.b).max() < 1e-13


def test_unknown_method():
    with pytest.raises(ValueError, match="method: expected one of .*dopri5.*, got 'rk5'"):
        tableau("rk5")


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - set(TABLEAUX)))
def test_methods_that_torchdiffeq_alone_has(name):
    with pytest.raises(NotImplementedError, match=f"method: '{name}' is no Runge-Kutta method; use torchd"):
        tableau(name)

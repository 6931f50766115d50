"""The tableaux meet the order conditions of Runge-Kutta methods (Hairer, Nørsett, Wanner, II.2)."""

import numpy
import pytest

from flowkern.ode.tableau import TABLEAUX, tableau

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


def arrays(method):
    stages = len(method.c)
    a = numpy.array([[*row, *[0.0] * (stages - len(row))] for row in method.a])
    return a, numpy.array(method.c)


def residual(method, weights, order, theta=1.0):
    a, c = arrays(method)
    return max(
        abs(weights @ stage(a, c) - density * theta**p)
        for p in range(1, order + 1)
        for stage, density in CONDITIONS[p]
    )


@pytest.mark.parametrize("method", TABLEAUX.values(), ids=lambda m: m.name)
def test_order(method):
    a, c = arrays(method)
    assert abs(a.sum(1) - c).max() < 1e-14
    b = numpy.array(method.b)
    assert residual(method, b, method.order) < 1e-14
    if method.order < 5:
        assert residual(method, b, method.order + 1) > 1e-3


@pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5"])
def test_adaptive_methods(name):
    """The embedded method has one order less; the last stage is the next step's first."""
    method = TABLEAUX[name]
    b, difference = numpy.array(method.b), numpy.array(method.b_error)
    assert residual(method, b - difference, method.order - 1) < 1e-13
    assert residual(method, b - difference, method.order) > 1e-4
    assert method.a[-1] == method.b[:-1] and method.b[-1] == 0


@pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5"])
@pytest.mark.parametrize("theta", [0.3, 0.5, 0.8, 1.0])
def test_dense_output(name, theta):
    method = TABLEAUX[name]
    weights = numpy.array(method.dense) @ theta ** numpy.arange(1, 5)
    assert residual(method, weights, min(method.order, 4), theta) < 1e-13
    if theta == 1:
        assert abs(weights - method.b).max() < 1e-13


def test_unknown_method():
    with pytest.raises(ValueError, match="method: expected one of .*dopri5.*, got 'rk5'"):
        tableau("rk5")

"""The solve of bench.tables.neural_ode in JAX: diffrax with the trace by jacfwd, as its users write it, and a scan
with the trace in closed form; both take classical steps. The report's versions say where they are missing.
XLA has as many threads as the machine has cores, whatever torch has.
"""

import importlib.util

import numpy
import torch

from bench import peers

jax, diffrax = peers.optional("jax"), peers.optional("diffrax")


def installed():
    """Whether they are, and the tensors are where XLA's are: on the CPU."""
    return importlib.util.find_spec("diffrax") is not None and torch.get_default_device().type == "cpu"


def make(name, work, parameters, steps):
    """call(y, noise, grad_y, grad_logabsdet), as those of bench.tables.neural_ode."""
    solve = SOLVES[name](steps)
    parameters = [_to_jax(p) for p in parameters]
    if "backward" not in work:
        forward = jax.jit(solve)
        return lambda y, *_: tuple(map(_to_torch, forward(parameters, _to_jax(y))))

    @jax.jit
    def with_gradients(parameters, y, *cotangents):
        outputs, pull = jax.vjp(solve, parameters, y)
        return outputs, pull(cotangents)

    def call(y, noise, *grads):
        outputs, (grads, grad) = with_gradients(parameters, *map(_to_jax, (y, *grads)))
        return *map(_to_torch, outputs), _to_torch(grad), [*map(_to_torch, grads)]

    return call


def _to_jax(tensor):
    return jax.numpy.asarray(tensor.detach().numpy())


def _to_torch(array):
    return torch.utils.dlpack.from_dlpack(array)


def _field(parameters, t, x):
    """f, and the values of both hidden layers."""
    w1, b1, w2, b2, w3, b3 = parameters
    u = jax.numpy.tanh(x @ w1[:, :-1].T + b1 + t * w1[:, -1])
    v = jax.numpy.tanh(u @ w2.T + b2)
    return v @ w3.T + b3, u, v


def _by_scan(steps):
    def solve(parameters, y):
        w1, _, w2, _, w3, _ = parameters
        m, h = w2 * (w1[:, :-1] @ w3).T, 1 / steps

        def slope(t, x):
            f, u, v = _field(parameters, t, x)
            return f, ((1 - v * v) * ((1 - u * u) @ m.T)).sum(-1)

        def step(state, t):
            x, logabsdet = state
            k1, r1 = slope(t, x)
            k2, r2 = slope(t + h / 2, x + h / 2 * k1)
            k3, r3 = slope(t + h / 2, x + h / 2 * k2)
            k4, r4 = slope(t + h, x + h * k3)
            return (x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), logabsdet + h / 6 * (r1 + 2 * r2 + 2 * r3 + r4)), None

        return jax.lax.scan(step, (y, 0 * y[:, 0]), h * jax.numpy.arange(steps))[0]

    return solve


def _by_diffrax(steps):
    class Classical(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            c=numpy.array([0.5, 0.5, 1]), a_lower=tuple(map(numpy.array, ([0.5], [0, 0.5], [0, 0, 1.0]))),
            b_sol=numpy.array([1, 2, 2, 1]) / 6, b_error=numpy.zeros(4),
        )  # fmt: skip
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            return 4

    def slope(t, state, parameters):
        f = lambda x: _field(parameters, t, x)[0]  # noqa: E731
        return f(state[0]), jax.vmap(lambda x: jax.numpy.trace(jax.jacfwd(f)(x)))(state[0])

    def solve(parameters, y):
        term, start = diffrax.ODETerm(slope), (y, 0 * y[:, 0])
        found = diffrax.diffeqsolve(term, Classical(), 0.0, 1.0, 1 / steps, start, parameters, max_steps=steps)
        return tuple(part[-1] for part in found.ys)

    return solve


SOLVES = {"diffrax": _by_diffrax, "jax(closed form)": _by_scan}

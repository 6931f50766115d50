"""The neural ODE solve in plain PyTorch: the specification of every kernel.

Arguments of all backends, after y (N, D); I intervals with the same number of steps, s stages, L layers, H the first
one's units:
    spec: a `Spec`, plain numbers.
    starts, sizes: (I,), when each interval begins, and h, the size of its steps.
    row_bias: (N, H), what the first layer adds per sample, or None.
    time: (H, P), what it does with φ(t), or None for an autonomous field.
    frequencies: ω (P/2,) for φ(t) = (cos ωt, sin ωt), or None for φ(t) = t.
    closed: what the exact trace of one hidden layer (H,) or two (H₂, H₁) is computed with, or None.
    directions: ε (M, N, D), or None.
    tensors: the L weights, and then the L biases, None where a layer has none for all samples.
The results are ends (I, N, D), the solution after each interval; sums (I, 3, N) of ∫ Tr ∂f/∂y, ∫ ‖f‖² and
∫ Σ weight·‖∂f/∂y ε‖²; and kept (I, C, N, D), the states after each `every` steps before an interval's end,
C = steps/every − 1, of which no gradient is taken.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from flowkern.ops._activation import derivative, value
from flowkern.ops._neural_ode.field import embedding


class Spec(NamedTuple):
    """What is no tensor: each hidden layer's activation, by code, and slope; the tableau's a, row after
    row, b and c; how many steps an interval has, and after how many a state is kept; the weight of a
    direction in the trace; and whether ‖f‖² and ‖∂f/∂y ε‖² are integrated."""

    activations: tuple
    slopes: tuple
    a: tuple
    b: tuple
    c: tuple
    steps: int
    every: int
    weight: float
    kinetic: bool
    jacobian: bool

    @property
    def stages(self) -> int:
        return len(self.b)

    def row(self, i: int) -> tuple[float, ...]:
        """a_ij for j < i."""
        begin = i * (i - 1) // 2
        return self.a[begin : begin + i]


class Problem(NamedTuple):
    """The arguments after y, in order, without `tensors` being spread."""

    spec: Spec
    starts: torch.Tensor
    sizes: torch.Tensor
    row_bias: torch.Tensor | None
    time: torch.Tensor | None
    frequencies: torch.Tensor | None
    closed: torch.Tensor | None
    directions: torch.Tensor | None
    tensors: tuple

    @property
    def layers(self) -> int:
        return len(self.spec.activations) + 1


def forward(y, spec, *arguments):
    """y (N, D) -> ends (I, N, D), sums (I, 3, N), kept (I, C, N, D); differentiable to any order."""
    p = Problem(*(spec, *arguments[:7], arguments[7:]))
    sums, ends, integrals, kept = y.new_zeros(3, y.shape[0]), [], [], []
    for k in range(p.starts.shape[0]):
        for n in range(spec.steps):
            if n > 0 and n % spec.every == 0:
                kept.append(y.detach())
            y, sums = step(y, sums, k, n, p)
        ends.append(y)
        integrals.append(sums)
    kept = _stack(kept, y).reshape(len(ends), spec.steps // spec.every - 1, *y.shape)
    return _stack(ends, y), _stack(integrals, sums), kept


def _stack(tensors, like):
    return torch.stack(tensors) if tensors else like.new_empty(0, *like.shape)


def step(y, sums, i, n, p):
    """y and sums after step n of interval i."""
    h, b = p.sizes[i], p.spec.b
    k: list[torch.Tensor] = []
    rates: list[torch.Tensor] = []
    for row in range(p.spec.stages):
        at = combine(y, h, p.spec.row(row), k)
        f, rate = field(at, p.starts[i] + (n + p.spec.c[row]) * h, p)
        k.append(f)
        rates.append(rate)
    return combine(y, h, b, k), combine(sums, h, b, rates)


def combine(
    y: torch.Tensor, h: torch.Tensor, coefficients: tuple[float, ...], slopes: Sequence[torch.Tensor]
) -> torch.Tensor:
    """y + h Σ a_j k_j."""
    total = sum((a * k for a, k in zip(coefficients, slopes) if a != 0), torch.zeros_like(y))
    return y + h * total


def field(y: torch.Tensor, t: torch.Tensor, p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """f(t, y) (N, D), and the rates (3, N) at which the integrals grow."""
    u, tangents, derivatives = y, p.directions, []
    for l in range(p.layers):
        z = F.linear(u, p.tensors[l])
        if p.tensors[p.layers + l] is not None:
            z = z + p.tensors[p.layers + l]
        if l == 0 and p.time is not None:
            z = z + p.time @ embedding(t, p.frequencies)
        if l == 0 and p.row_bias is not None:
            z = z + p.row_bias
        if tangents is not None:
            tangents = F.linear(tangents, p.tensors[l])
        if l + 1 == p.layers:
            break
        kind = p.spec.activations[l], p.spec.slopes[l]
        derivatives.append(derivative(z, *kind))
        u = value(z, *kind)
        if tangents is not None:
            tangents = tangents * derivatives[-1]
    return z, _rates(z, tangents, derivatives, p)


def _rates(f, tangents, derivatives, p):
    zero = f.new_zeros(f.shape[0])
    trace = kinetic = jacobian = zero
    if p.closed is not None:
        last = derivatives[-1]
        trace = (last * (p.closed if p.closed.dim() == 1 else F.linear(derivatives[0], p.closed))).sum(-1)
    elif tangents is not None:
        trace = p.spec.weight * (tangents * p.directions).sum((0, 2))
    if p.spec.kinetic:
        kinetic = f.square().sum(-1)
    if p.spec.jacobian:
        jacobian = p.spec.weight * tangents.square().sum((0, 2))
    return torch.stack((trace, kinetic, jacobian))


def backward(grad_ends, grad_sums, ends, kept, y, adjoint, spec, *arguments):
    """Gradients of y, starts, sizes, row_bias, time, frequencies, closed, directions (None), the tensors.

    adjoint: the continuous adjoint, from the ends alone; else the vector-Jacobian product of `forward`,
    by autograd.
    """
    if adjoint:
        return _continuous(grad_ends, grad_sums, ends, y, Problem(*(spec, *arguments[:7], arguments[7:])))
    inputs = (y, *arguments[:6], *arguments[7:])

    def run(*inputs):
        return forward(inputs[0], spec, *inputs[1:7], arguments[6], *inputs[7:])[:2]

    _, pull = vjp(run, *inputs)
    grads = pull((grad_ends, grad_sums))
    return *grads[:7], None, *grads[7:]


def vjp(function, *inputs):
    """torch.func.vjp where inputs may be None; their gradients then are."""
    given = [i for i, t in enumerate(inputs) if t is not None]

    def spread(some):
        every = [None] * len(inputs)
        for i, tensor in zip(given, some):
            every[i] = tensor
        return every

    outputs, pull, *_ = torch.func.vjp(lambda *some: function(*spread(some)), *(inputs[i] for i in given))
    return outputs, lambda cotangents: spread(pull(cotangents))


def _continuous(
    grad_ends: torch.Tensor, grad_sums: torch.Tensor, ends: torch.Tensor, y: torch.Tensor, p: Problem
) -> tuple[torch.Tensor | None, ...]:
    """Integrates (y, λ) and the gradients back from the end of each interval, with the same method."""
    inputs = (p.row_bias, p.time, p.frequencies, p.closed, *p.tensors)
    grads = [None if t is None else torch.zeros_like(t) for t in (p.starts, p.sizes, *inputs)]
    lam, mu = torch.zeros_like(y), y.new_zeros(3, y.shape[0])
    for i in reversed(range(p.starts.shape[0])):
        y, lam, mu = ends[i], lam + grad_ends[i], mu + grad_sums[i]
        for n in reversed(range(p.spec.steps)):
            y, lam = _step_back(y, lam, mu, i, n, p, grads)
    return lam, *grads[:6], None, *grads[6:]


def _step_back(y, lam, mu, i, n, p, grads):
    h = p.sizes[i]
    k: list[torch.Tensor] = []
    l: list[torch.Tensor] = []
    for row, b, c in zip(map(p.spec.row, range(p.spec.stages)), p.spec.b, p.spec.c):
        at, lam_i = combine(y, -h, row, k), combine(lam, h, row, l)
        steps = n + 1 - c  # from the interval's start
        f, rate, of_y, of_t, *of_inputs = _field_vjp(at, lam_i, mu, p.starts[i] + steps * h, p)
        k.append(f)
        l.append(of_y)
        grads[0][i] += h * b * of_t
        grads[1][i] += h * b * of_t * steps + b * ((lam_i * f).sum() + (mu * rate).sum())
        for total, grad in zip(grads[2:], of_inputs):
            if total is not None:
                total += h * b * grad
    return combine(y, -h, p.spec.b, k), combine(lam, h, p.spec.b, l)


def _field_vjp(y, lam, mu, t, p):
    """f, its rates, and (λ, μ)ᵀ ∂(f, rates)/∂(y, t, row_bias, time, frequencies, closed, tensors)."""

    def run(y, t, row_bias, time, frequencies, closed, *tensors):
        changed = dict(row_bias=row_bias, time=time, frequencies=frequencies, closed=closed)
        return field(y, t, p._replace(tensors=tensors, **changed))

    inputs = (p.row_bias, p.time, p.frequencies, p.closed, *p.tensors)
    (f, rates), pull = vjp(run, y, t, *inputs)
    return f, rates, *pull((lam, mu))

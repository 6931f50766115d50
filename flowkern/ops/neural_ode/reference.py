"""The neural ODE solve in plain PyTorch: the specification of every kernel.

Arguments of all backends, after y (N, D); S steps of s stages, L layers, H the first one's units:
    spec: a `Spec`, plain numbers.
    steps: h (S,), the step sizes.
    first: (S, s, H), what is added in the first layer at each stage: its bias, and time.
    row_bias: (N, H) added there per sample, or None.
    closed: what the exact trace of one hidden layer (H,) or two (H₂, H₁) is computed with, or None.
    directions: ε (M, N, D), or None.
    tensors: the L weights, and then the biases of layers 2 … L, None where a layer has none.
The solution is kept after each `every` steps: path (C, N, D) with C = S / every, and sums (C, 3, N)
of ∫ Tr ∂f/∂y, ∫ ‖f‖² and ∫ Σ weight·‖∂f/∂y ε‖².
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from flowkern.ops.neural_ode.field import activation, derivative


class Spec(NamedTuple):
    """What is no tensor: each hidden layer's activation, by code, and slope; the tableau's a, row after
    row, and b; after how many steps the solution is kept; the weight of a direction in the trace; and
    whether ‖f‖² and ‖∂f/∂y ε‖² are integrated."""

    activations: tuple
    slopes: tuple
    a: tuple
    b: tuple
    every: int
    weight: float
    kinetic: bool
    jacobian: bool

    @property
    def stages(self):
        return len(self.b)

    def row(self, i):
        """a_ij for j < i."""
        begin = i * (i - 1) // 2
        return self.a[begin : begin + i]


class Problem(NamedTuple):
    """The arguments after y, in order, without `tensors` being spread."""

    spec: Spec
    steps: torch.Tensor
    first: torch.Tensor
    row_bias: torch.Tensor | None
    closed: torch.Tensor | None
    directions: torch.Tensor | None
    tensors: tuple

    @property
    def layers(self):
        return len(self.spec.activations) + 1


def forward(y, spec, steps, first, row_bias, closed, directions, *tensors):
    """y (N, D) -> path (C, N, D), sums (C, 3, N); differentiable to any order."""
    p = Problem(spec, steps, first, row_bias, closed, directions, tensors)
    sums, path, kept = y.new_zeros(3, y.shape[0]), [], []
    for n in range(steps.shape[0]):
        y, sums = step(y, sums, n, p)
        if (n + 1) % spec.every == 0:
            path.append(y)
            kept.append(sums)
    if not path:
        return y.new_empty(0, *y.shape), sums.new_empty(0, *sums.shape)
    return torch.stack(path), torch.stack(kept)


def step(y, sums, n, p):
    """y and sums after step n."""
    h, b = p.steps[n], p.spec.b
    k, rates = [], []
    for i in range(p.spec.stages):
        at = combine(y, h, p.spec.row(i), k)
        f, rate = field(at, p.first[n, i], p)
        k.append(f)
        rates.append(rate)
    return combine(y, h, b, k), combine(sums, h, b, rates)


def combine(y, h, coefficients, slopes):
    """y + h Σ a_j k_j."""
    total = sum((a * k for a, k in zip(coefficients, slopes) if a != 0), torch.zeros_like(y))
    return y + h * total


def field(y, first, p):
    """f(y) (N, D), and the rates (3, N) at which the integrals grow."""
    u, tangents, derivatives = y, p.directions, []
    for l in range(p.layers):
        z = F.linear(u, p.tensors[l])
        if l == 0:
            z = z + first if p.row_bias is None else z + first + p.row_bias
        elif p.tensors[p.layers + l - 1] is not None:
            z = z + p.tensors[p.layers + l - 1]
        if tangents is not None:
            tangents = F.linear(tangents, p.tensors[l])
        if l + 1 == p.layers:
            break
        kind = p.spec.activations[l], p.spec.slopes[l]
        derivatives.append(derivative(z, *kind))
        u = activation(z, *kind)
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


def backward(grad_path, grad_sums, path, y, adjoint, *arguments):
    """Gradients of y, steps, first, row_bias, closed, directions (None) and the tensors.

    adjoint: the continuous adjoint, from the states that were kept, where `first` belongs to the times
    of the way back (stage i of step n at the end of the step less c_i h); else the vector-Jacobian
    product of `forward`, by autograd.
    """
    if adjoint:
        return _continuous(grad_path, grad_sums, path, y, Problem(*arguments[:6], arguments[6:]))
    inputs = (y, *arguments[1:5], *arguments[6:])
    given = [i for i, t in enumerate(inputs) if t is not None]

    def run(*some):
        every = list(inputs)
        for i, tensor in zip(given, some):
            every[i] = tensor
        return forward(every[0], arguments[0], *every[1:5], arguments[5], *every[5:])

    _, pull = torch.func.vjp(run, *(inputs[i] for i in given))
    grads = [None] * len(inputs)
    for i, grad in zip(given, pull((grad_path, grad_sums))):
        grads[i] = grad
    return *grads[:5], None, *grads[5:]


def _continuous(grad_path, grad_sums, path, y, p):
    """Integrates (y, λ) and the gradients back from each state that was kept, with the same method."""
    inputs = (p.row_bias, p.closed, *p.tensors)
    grads = [None if t is None else torch.zeros_like(t) for t in (p.steps, p.first, *inputs)]
    lam, mu = torch.zeros_like(y), y.new_zeros(3, y.shape[0])
    for n in reversed(range(p.steps.shape[0])):
        if (n + 1) % p.spec.every == 0:
            kept = n // p.spec.every
            y, lam, mu = path[kept], lam + grad_path[kept], mu + grad_sums[kept]
        y, lam = _step_back(y, lam, mu, n, p, grads)
    return lam, *grads[:4], None, *grads[4:]


def _step_back(y, lam, mu, n, p, grads):
    h, k, l = p.steps[n], [], []
    for i in range(p.spec.stages):
        row, b = p.spec.row(i), p.spec.b[i]
        at, lam_i = combine(y, -h, row, k), combine(lam, h, row, l)
        f, rate, of_y, of_first, *of_inputs = _field_vjp(at, lam_i, mu, p.first[n, i], p)
        k.append(f)
        l.append(of_y)
        grads[0][n] += b * ((lam_i * f).sum() + (mu * rate).sum())
        grads[1][n, i] += h * b * of_first
        for total, grad in zip(grads[2:], of_inputs):
            if total is not None:
                total += h * b * grad
    return combine(y, -h, p.spec.b, k), combine(lam, h, p.spec.b, l)


def _field_vjp(y, lam, mu, first, p):
    """f, its rates, and (λ, μ)ᵀ ∂(f, rates)/∂(y, first, row_bias, closed, tensors)."""
    inputs = (p.row_bias, p.closed, *p.tensors)
    given = [i for i, t in enumerate(inputs) if t is not None]

    def run(y, first, *some):
        every = list(inputs)
        for i, tensor in zip(given, some):
            every[i] = tensor
        return field(y, first, p._replace(row_bias=every[0], closed=every[1], tensors=tuple(every[2:])))

    (f, rates), pull = torch.func.vjp(run, y, first, *(inputs[i] for i in given))
    of_y, of_first, *some = pull((lam, mu))
    grads = [None] * len(inputs)
    for i, grad in zip(given, some):
        grads[i] = grad
    return f, rates, of_y, of_first, *grads

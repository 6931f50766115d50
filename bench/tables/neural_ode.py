"""Tables of the neural ODE solve: 8 features, two hidden layers of 64 tanh units, 16 steps of four stages.

The field sees time as one more input. All candidates take the steps of the 3/8 rule, which is
torchdiffeq's "rk4", but "closed form", which takes those of the classical tableau, as hand-written loops
do: as many evaluations, another result, checked against its own float64. So are the two rows of JAX
(bench/jax_solvers.py), which are there where it is installed. Trace "exact" is that of
each candidate's own making: one vector-Jacobian product for each feature with torchdiffeq, the closed
form d₂ᵀ (W₂ ∘ (W₁W₃)ᵀ) d₁ with flowkern and by hand. "hutchinson" is one Rademacher vector.

No candidate can be faster than the multiplications of its evaluations: 2DH + 2H² for each sample and stage,
and four times that with gradients. "limit: matmul" is one `torch.mm` of as many, with a square matrix of 256,
at which its rate is highest: one of H = 64 waits for memory, and took up to three times as long.

The tables of memory have the same work with gradients at 16 to 1024 steps: a state per step, a state in
√steps (checkpoint), none (adjoint), and torchdiffeq, whose `odeint` keeps every activation. The table of
accuracy has methods with more and more steps; only there are errors those to the exact solution.
"""

import itertools
from functools import partial

import torch

import flowkern
from bench import jax_solvers, ops, peers
from bench.harness import Candidate, Table
from flowkern.ops import FieldLayer, TimeEmbedding, neural_ode

torchdiffeq = peers.optional("torchdiffeq")
FEATURES, HIDDEN, STEPS = 8, 64, 16
TRACES = ("exact", "hutchinson")
WORKS = ("forward", "forward+backward")
TORCHDIFFEQ_STEPS = 256  # as far as its memory is measured: 1.5 GiB
_LIMIT_WIDTH = 256
ACCURACY = {"euler": (16, 64, 256), "midpoint": (8, 32, 128), "rk4": (4, 16, 64), "dopri5": (2, 8, 32)}


QUICK = {"batches": (3,), "compiled": (), "memory": (4,)}


def on_gpu(dry_run, compiled):
    batches, steps = ((3,), 1) if dry_run else ((1, 1024, 65536), 16)
    return {"batches": batches, "compiled": compiled, "memory": (), "steps": steps}


def tables(batches=(1, 32, 1024), compiled=("compile",), memory=(16, 64, 256, 1024), steps=STEPS):
    """One Table for each trace, work and batch size; one of memory for each number of steps; of accuracy."""
    for batch, trace, work in itertools.product(batches, TRACES, WORKS):
        candidates = [*_candidates(trace, work, compiled, steps), _limit(batch, work, steps)]
        yield Table(
            f"neural_ode-{trace}-{work}-{batch}",
            f"neural_ode, {trace} trace, {work}, N={batch}, D={FEATURES}, H={HIDDEN}×2, {steps} steps",
            partial(_inputs, batch),
            tuple(candidates),
        )
    for steps in memory:
        yield _memory(steps)
    yield _accuracy(max(batches))


def _memory(steps, batch=256):
    candidates = [
        ("flowkern", _fused, {}),
        ("flowkern[checkpoint]", _fused, {"checkpoint": 2 ** (steps.bit_length() // 2)}),
        ("flowkern[adjoint]", _on_backend, {"gradient": "adjoint"}),
        ("torchdiffeq", by_torchdiffeq, {}),
        ("torchdiffeq[adjoint]", by_torchdiffeq, {"adjoint": True}),
    ]
    return Table(
        f"neural_ode-memory-{steps}",
        f"neural_ode, memory, hutchinson, forward+backward, N={batch}, {steps} steps",
        partial(_inputs, batch),
        tuple(
            _candidate(name, partial(solve, steps=steps, **options))
            for name, solve, options in candidates
            if steps <= TORCHDIFFEQ_STEPS or name != "torchdiffeq"
        ),
        floor=2e-5,  # so many steps' rounding errors
    )


def _candidate(name, solve):
    """One with gradients, whose truth is itself in float64."""
    plain = partial(_make, solve, "hutchinson", "forward+backward")
    return Candidate(name, lambda inputs: plain(torch.float32), plain)


def _accuracy(batch):
    solution = partial(_on_backend, method="dopri5", steps=400)
    plain = partial(_make, solution, "exact", "forward")
    solves = {
        f"flowkern[{method}, {steps}]": partial(_fused, method=method, steps=steps)
        for method, numbers in ACCURACY.items()
        for steps in numbers
    }
    first = next(iter(solves))
    return Table(
        f"neural_ode-accuracy-{batch}",
        f"neural_ode, errors to the solution, exact trace, forward, N={batch}, [method, steps]",
        partial(_inputs, batch),
        tuple(
            Candidate(name, lambda inputs, f=f: _make(f, "exact", "forward", torch.float32), plain, first)
            for name, f in solves.items()
        ),
        floor=1.0,
    )


def _inputs(batch):
    """y, noise, cotangents of y(1) and of the log-det."""
    y, noise, grad_y = torch.randn(3, batch, FEATURES).unbind()
    return [[y.requires_grad_(), noise.sign(), grad_y, torch.randn(batch)]]


def _candidates(trace, work, compiled, steps):
    fused, library, by_hand = (partial(f, steps=steps) for f in (_fused, by_torchdiffeq, _by_hand))
    plain = partial(_make, library, trace, work)
    yield Candidate("flowkern", lambda inputs: _make(fused, trace, work, torch.float32), plain)
    if work == "forward+backward":
        adjoint = partial(_make, partial(_on_backend, gradient="adjoint", steps=steps), trace, work)
        yield Candidate("flowkern[adjoint]", lambda inputs: adjoint(torch.float32), adjoint)
    yield Candidate("torchdiffeq", lambda inputs: _make(library, trace, work, torch.float32), plain)
    if trace == "exact":
        own = partial(_make, by_hand, trace, work)
        yield Candidate("closed form", lambda inputs: _make(by_hand, trace, work, torch.float32), own)
        for name in jax_solvers.SOLVES if jax_solvers.installed() else ():
            solve = partial(jax_solvers.make, name, work)
            yield Candidate(name, lambda inputs, f=solve: f(parameters(torch.float32), steps), own)
        for compiler in compiled:
            name = f"{compiler}(closed form)"
            yield Candidate(name, partial(_compiled, name, by_hand, trace, work), own)


def _make(solve, trace, work, dtype):
    """call(y, noise, grad_y, grad_logabsdet) with the parameters of `parameters`."""
    weights = [p.requires_grad_("backward" in work) for p in parameters(dtype)]

    def call(y, noise, grad_y, grad_logabsdet):
        if "backward" not in work:
            with torch.no_grad():
                return solve(y, noise if trace == "hutchinson" else None, *weights)
        outputs = solve(y, noise if trace == "hutchinson" else None, *weights)
        grad, *grads = torch.autograd.grad(outputs, (y, *weights), (grad_y, grad_logabsdet))
        return *outputs, grad, grads

    return call


def _compiled(name, solve, trace, work, inputs):
    return _make(ops.compile_(solve, ops.compiler(name)), trace, work, torch.float32)


def _on_backend(y, *arguments, **options):
    """flowkern's solve; in float64, which is a truth, by the reference."""
    backend = "reference" if y.dtype == torch.float64 else flowkern.backends.resolve(y.device.type)
    with flowkern.backend(backend):
        return _fused(y, *arguments, **options)


def parameters(dtype):
    """The same on every device."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = ((HIDDEN, FEATURES + 1), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (FEATURES, HIDDEN), (FEATURES,))
    values = (torch.randn(s, generator=generator, device="cpu") / s[-1] ** 0.5 for s in shapes)
    return [value.to(torch.get_default_device(), dtype) for value in values]


def _fused(y, noise, w1, b1, w2, b2, w3, b3, steps=STEPS, **options):
    layers = [FieldLayer(w1[:, :-1], b1, "tanh"), FieldLayer(w2, b2, "tanh"), FieldLayer(w3, b3)]
    solution = neural_ode(
        y, layers, y.new_tensor([0.0, 1.0]), steps=steps, time=TimeEmbedding(w1[:, -1:]),
        trace="exact" if noise is None else noise, **options,
    )  # fmt: skip
    return solution.y[-1], solution.logabsdet[-1]


def by_torchdiffeq(y, noise, *parameters, steps=STEPS, adjoint=False):
    """What users of torchdiffeq write: the trace by autograd inside the field."""
    w1, b1, w2, b2, w3, b3 = parameters

    def field(t, state):
        needs_grad = torch.is_grad_enabled()
        with torch.enable_grad():
            x = state[0] if needs_grad and state[0].requires_grad else state[0].detach().requires_grad_()
            u = torch.tanh(torch.addmm(b1, torch.cat((x, t.expand(len(x), 1)), 1), w1.mT))
            f = torch.addmm(b3, torch.tanh(torch.addmm(b2, u, w2.mT)), w3.mT)
            trace = _trace(f, x, noise, needs_grad)
        return (f, trace) if needs_grad else (f.detach(), trace.detach())

    solve = partial(torchdiffeq.odeint_adjoint, adjoint_params=parameters) if adjoint else torchdiffeq.odeint
    t, options = y.new_tensor([0.0, 1.0]), {"step_size": 1 / steps}
    path, sums = solve(field, (y, y.new_zeros(len(y))), t, method="rk4", options=options)
    return path[-1], sums[-1]


def _trace(f, x, noise, create):
    if noise is not None:
        return (torch.autograd.grad(f, x, noise, create_graph=create)[0] * noise).sum(-1)
    columns = (
        torch.autograd.grad(f[:, i].sum(), x, create_graph=create, retain_graph=True)[0][:, i] for i in range(FEATURES)
    )
    return sum(columns)


def _by_hand(y, noise, w1, b1, w2, b2, w3, b3, steps):
    """Classical steps with the trace in closed form."""
    m = w2 * (w1[:, :-1] @ w3).mT
    h, logabsdet = 1 / steps, y.new_zeros(len(y))

    def field(t, x):
        u = torch.tanh(torch.addmm(b1 + t * w1[:, -1], x, w1[:, :-1].mT))
        v = torch.tanh(torch.addmm(b2, u, w2.mT))
        return torch.addmm(b3, v, w3.mT), ((1 - v * v) * ((1 - u * u) @ m.mT)).sum(-1)

    for n in range(steps):
        t = n * h
        k1, r1 = field(t, y)
        k2, r2 = field(t + h / 2, y + h / 2 * k1)
        k3, r3 = field(t + h / 2, y + h / 2 * k2)
        k4, r4 = field(t + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        logabsdet = logabsdet + h / 6 * (r1 + 2 * r2 + 2 * r3 + r4)
    return y, logabsdet


def _limit(batch, work, steps):
    per_sample = 2 * FEATURES * HIDDEN + 2 * HIDDEN**2
    rows = batch * steps * 4 * (4 if "backward" in work else 1) * per_sample // _LIMIT_WIDTH**2

    def make(inputs):
        a, b = torch.randn(max(1, rows), _LIMIT_WIDTH), torch.randn(_LIMIT_WIDTH, _LIMIT_WIDTH)
        out = torch.empty(len(a), _LIMIT_WIDTH)
        return lambda *_: torch.mm(a, b, out=out)

    return Candidate("limit: matmul", make, None)

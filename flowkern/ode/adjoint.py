"""The continuous adjoint: gradients by an equation that runs backwards, in constant memory.

da/dt = −aᵀ ∂f/∂y, dg/dt = −aᵀ ∂f/∂θ from the last time to the first, beside y itself, which is
put right at every output. It is the gradient of the exact solution, solved to a tolerance or on a
grid; that of `odeint` is the gradient of the steps that were made.
"""

import torch
from torch.autograd.function import once_differentiable

from flowkern.ode.control import rms, state_norm
from flowkern.ode.odeint import Solver, odeint
from flowkern.ode.problem import CALLBACKS, real_dtype, unflattened


def odeint_adjoint(
    func, y0, t, *, rtol=1e-7, atol=1e-9, method=None, options=None, event_fn=None,
    adjoint_rtol=None, adjoint_atol=None, adjoint_method=None, adjoint_options=None,
    adjoint_params=None,
):  # fmt: skip
    """`odeint` whose gradients solve the adjoint equation, in memory that no step adds to.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as `odeint` takes them; func is a module, or
            adjoint_params are given.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: those of the backward solve;
            default those of the forward one, without its norm, and steps for the whole batch. For
            times (T, N) of each sample sizes of steps are those of the longest way between two outputs.
            The norm of the options takes the tuple (of t, y, a, and each parameter), or is
            "seminorm", which leaves out the parameters.
        adjoint_params: tensors that func uses and that get gradients; default func.parameters().

    Returns:
        As `odeint`. Gradients reach y0, t and the parameters, and can be taken once.

    Raises:
        As `odeint`; ValueError: func is no module and adjoint_params are not given, or method and
        adjoint_method differ and options are given without adjoint_options.

    Source: Chen et al., Neural Ordinary Differential Equations (2018), appendix B; torchdiffeq 0.2.5.
    """
    if event_fn is not None:
        raise NotImplementedError("event_fn: events are not supported; use torchdiffeq.odeint_adjoint")
    if adjoint_params is None and not isinstance(func, torch.nn.Module):
        raise ValueError("adjoint_params: needed, as func is not an nn.Module; () where there are none")
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise ValueError("adjoint_options: needed, as options are those of another method")
    params = func.parameters() if adjoint_params is None else adjoint_params
    solver = Solver.of(func, y0, t, rtol, atol, method, options)
    if adjoint_options is None:
        inherited = {**(options or {})}
        adjoint_options = {k: v for k, v in inherited.items() if k not in ("norm", "per_sample")}
    if solver.task.t.dim() == 2 and (at := {"step_t", "jump_t", "grid_constructor"} & {*adjoint_options}):
        raise ValueError(f"adjoint_options: {', '.join(sorted(at))}: not with times of each sample")
    backward = dict(
        rtol=rtol if adjoint_rtol is None else adjoint_rtol,
        atol=atol if adjoint_atol is None else adjoint_atol,
        method=adjoint_method or method, options=_with_norm(adjoint_options, solver),
    )  # fmt: skip
    callbacks = {name: getattr(func, f"{name}_adjoint", None) for name in CALLBACKS}
    task, params = solver.task, [p for p in params if p.requires_grad]
    states = _Adjoint.apply(solver, backward, callbacks, task.y0, task.t, *params)
    return unflattened(states, task.shapes, states.shape[:1])


def _with_norm(options, solver):
    """The backward options with the norm of (t, y, a, *parameters) that they mean."""
    wish = options.get("norm")
    shapes, of_state = solver.task.shapes, state_norm(solver.options.get("norm"), solver.task.shapes)

    def norm(parts):
        t, y, a, *params = parts
        if callable(wish):
            y, a = (unflattened(s, shapes) if shapes else (s,) for s in (y, a))
            return wish((t, *y, *a, *params))
        counted = () if wish == "seminorm" else params
        return torch.stack([t.abs(), of_state(y), of_state(a), *map(rms, counted)]).amax()

    return options | {"norm": norm}


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, solver, backward, callbacks, y0, t, *params):
        task = solver.task._replace(y0=y0.detach(), t=t.detach())
        states = solver._replace(task=task).states()
        ctx.func = _by_row(task.func) if solver.per_sample else task.func
        ctx.options, ctx.callbacks = backward, callbacks
        ctx.save_for_backward(states, t, *params)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        states, t, *params = ctx.saved_tensors
        own = t.dim() == 2  # times of each sample
        through_time = ctx.needs_input_grad[4] and not own
        seen = [_as_seen(time, states[0]) for time in t]
        grad_t = torch.zeros_like(t)
        sums = (states.new_zeros((), dtype=real_dtype(states)), *map(torch.zeros_like, params))
        a, carried = grad[-1], torch.zeros_like(grad[-1])
        for i in range(len(t) - 1, 0, -1):
            if ctx.needs_input_grad[4]:  # a later output moves along the solution
                grad_t[i] = _dot(ctx.func(seen[i], states[i]), grad[i], own)
            if through_time:
                sums = (sums[0] - grad_t[i].to(sums[0]), *sums[1:])
            way = _in_step(ctx.func, t[i - 1], t[i]) if own else (ctx.func, t[i - 1 : i + 1].flip(0))
            dynamics = _dynamics(way[0], params, through_time, ctx.callbacks)
            start = (sums[0], states[i], a, *sums[1:])
            first, _, carried, *rest = (part[1] for part in odeint(dynamics, start, way[1], **ctx.options))
            sums, a = (first, *rest), carried + grad[i - 1]
        grad_t[0] = sums[0]
        if own and ctx.needs_input_grad[4]:  # a later beginning moves all that follows
            grad_t[0] = -_dot(ctx.func(seen[0], states[0]), carried, own)
        return None, None, None, a, grad_t if ctx.needs_input_grad[4] else None, *sums[1:]


def _by_row(func):
    """func, which expects a time for each row, at one time for all."""
    return lambda t, y: func(t.expand(len(y), *(1,) * (y.dim() - 1)), y)


def _in_step(func, t0, t1):
    """func from times t0 (N,) to t1 as one of a time s that all rows share, and where s begins and ends."""
    span = t1 - t0
    length = span.abs().amax() if len(span) else span.sum()
    rate = torch.where(length > 0, span / length, 0.0)

    def field(s, y):
        return _as_seen(rate, y) * func(_as_seen(t0 + rate * s, y), y)

    return field, torch.stack((length, torch.zeros_like(length)))


def _as_seen(t, y):
    """A time, or times (N, 1, …) of each sample, as func sees them."""
    return t.to(real_dtype(y)).view(t.shape + (1,) * (y.dim() - 1) if t.dim() else ())


def _dynamics(func, params, through_time, callbacks):
    """The derivative of (∫ aᵀ ∂f/∂t, y, a, ∫ aᵀ ∂f/∂θ)."""

    def dynamics(t, state):
        _, y, a, *_ = state
        with torch.enable_grad():
            t = t.detach().requires_grad_(through_time)
            y = y.detach().requires_grad_()
            f = func(t, y)
            inputs = (*((t,) if through_time else ()), y, *params)
            grads = torch.autograd.grad(f, inputs, -a, allow_unused=True, materialize_grads=True)
        grad_t, *grads = grads if through_time else (torch.zeros_like(t), *grads)
        return grad_t, f.detach(), *grads

    for name, callback in callbacks.items():
        if callback is not None:
            setattr(dynamics, name, callback)
    return dynamics


def _dot(f, a, by_row):
    """⟨f, a⟩, or that of each row."""
    products = (f.conj() * a).real if f.is_complex() else f * a
    return products.unsqueeze(-1).flatten(1).sum(1) if by_row else products.sum()

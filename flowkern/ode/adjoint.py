"""The continuous adjoint: gradients by an equation that runs backwards, in constant memory.

da/dt = −aᵀ ∂f/∂y, dg/dt = −aᵀ ∂f/∂θ from the last time to the first, beside y itself, which is
put right at every output. It is the gradient of the exact solution, solved to a tolerance or on a
grid; that of `odeint` is the gradient of the steps that were made.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from flowkern import _torch
from flowkern.ode._odeint import Solver, check_tolerance, known_options, odeint, tolerance
from flowkern.ode.control import control, rms, state_norm
from flowkern.ode.problem import CALLBACKS, real_dtype, unflattened
from flowkern.ode.weights import Weights, check_used
from flowkern.ops._arguments import in_dtype
from flowkern.ops._batched import one_by_one
from flowkern.ops._modules import trainable
from flowkern.ops._tableau import tableau


def odeint_adjoint(
    func: Callable[..., Any],
    y0: torch.Tensor | tuple[torch.Tensor, ...],
    t: torch.Tensor,
    *,
    rtol: float | torch.Tensor | Sequence[float | torch.Tensor] = 1e-7,
    atol: float | torch.Tensor | Sequence[float | torch.Tensor] = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: float | torch.Tensor | Sequence[float | torch.Tensor] | None = None,
    adjoint_atol: float | torch.Tensor | Sequence[float | torch.Tensor] | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[torch.Tensor] | None = None,
) -> Any:
    """`odeint` whose gradients solve the adjoint equation, in memory that no step adds to.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as `odeint` takes them; func is a module, or
            adjoint_params are given.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: those of the backward solve;
            default those of the forward one, without its norm, and steps for the whole batch. Tolerances of
            parts, or like y0, are those of y and a; t and the parameters have the smallest. For times (T, N) of
            each sample sizes of steps are those of the longest way between two outputs.
            The norm of the options takes the tuple (of t, y, a, and each parameter), or is
            "seminorm", which leaves out the parameters.
        adjoint_params: tensors that func uses and that get gradients; default the parameters of func, and its
            buffers that require gradients.

    Returns:
        As `odeint`. Gradients reach y0, t and the parameters; second derivatives too, by backpropagation through
        the backward solve. func is evaluated with the weights and the autocast of the call.

    Raises:
        As `odeint`; ValueError: func is no module and adjoint_params are not given, or method and
        adjoint_method differ and options are given without adjoint_options. RuntimeError: in the backward, func
        does not use adjoint_params any more, or a third derivative is asked for; at the call, within
        `parametrize.cached()`. NotImplementedError: within transforms of torch.func.

    Source: Chen et al., Neural Ordinary Differential Equations (2018), appendix B; torchdiffeq 0.2.5.

    Example:
        >>> import torch, flowkern
        >>> field = flowkern.nn.VectorField(features=2)
        >>> y = flowkern.odeint_adjoint(field, torch.zeros(3, 2), torch.tensor([0.0, 1.0]), method="rk4")
        >>> y[-1].sum().backward()
        >>> all(p.grad is not None for p in field.parameters())
        True
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _interrupted(
            func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn,
            adjoint_rtol=adjoint_rtol, adjoint_atol=adjoint_atol, adjoint_method=adjoint_method,
            adjoint_options=adjoint_options, adjoint_params=adjoint_params,
        )  # fmt: skip
    if event_fn is not None:
        raise NotImplementedError("event_fn: events are not supported; use torchdiffeq.odeint_adjoint")
    if adjoint_params is None and not isinstance(func, torch.nn.Module):
        raise ValueError("adjoint_params: needed, as func is not an nn.Module; () where there are none")
    table = None if adjoint_method is None else tableau(adjoint_method, "adjoint_method")
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise ValueError("adjoint_options: needed, as options are those of another method")
    _check_surroundings()
    solver = Solver.of(func, y0, t, rtol, atol, method, options)
    params = trainable(func) if adjoint_params is None else _tensors(adjoint_params)
    params = tuple(p for p in params if p.requires_grad)
    if adjoint_options is None:
        adjoint_options = {name: value for name, value in solver.options.items() if name != "norm"}
    tolerances = {
        name: _tolerance(f"adjoint_{name}", forward if own is None else own, solver.task, len(params))
        for name, forward, own in (("rtol", rtol, adjoint_rtol), ("atol", atol, adjoint_atol))
    }
    table = table or solver.method
    backward = dict(method=table.name, options=_options(adjoint_options, table, solver), **tolerances)
    callbacks = {name: getattr(func, f"{name}_adjoint", None) for name in CALLBACKS}
    autocast = _autocast(solver.task.y0.device.type)
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return solver.parts(solver.states())  # of which no backward is kept
    call = _Call(solver, backward, callbacks, Weights(func), params, autocast)
    return solver.parts(_Adjoint.apply(call, solver.task.y0, solver.task.t, *params))


@torch.compiler.disable
def _interrupted(*arguments, **options):
    """A call outside of the graph that is compiled: a solve backwards is no part of one."""
    return odeint_adjoint(*arguments, **options)


def _tensors(params):
    single = isinstance(params, torch.Tensor) or not isinstance(params, Iterable)
    params = params if single else tuple(params)
    if single or not all(isinstance(p, torch.Tensor) for p in params):
        raise TypeError(f"adjoint_params: expected a sequence of tensors, got {params!r}")
    return params


def _check_surroundings() -> None:
    if _torch.transforming() or _torch.forward_mode():
        raise NotImplementedError("odeint_adjoint: torch.func's transforms and forward mode do not see it; use odeint")
    if _torch.caches_parametrizations():
        raise RuntimeError(
            "odeint_adjoint: not within parametrize.cached(): the solve has no graph, and the weights that are "
            "kept would have none either; use odeint, or leave cached()"
        )


def _tolerance(name, value, task, params):
    """A tolerance of (t, y, a, *params): of a forward one with parts, those for y and a, else the smallest."""
    value = tolerance(name, value, task)
    if isinstance(value, float):
        return value
    check_tolerance(name, value)
    least = value.amin() if value.numel() else value.new_zeros(())
    return least, value, value, *(least,) * params


def _options(options, method, solver):
    """Those of the backward solves, checked."""
    options = known_options("adjoint_options", options, method, 4)
    if options.pop("per_sample", False):
        raise ValueError("adjoint_options: per_sample: backwards the steps are those of the whole batch")
    if solver.task.t.dim() == 2 and (at := {"step_t", "jump_t", "grid_constructor"} & {*options}):
        raise ValueError(f"adjoint_options: {', '.join(sorted(at))}: not with times of each sample")
    if method.b_error is None:
        return options
    norm = options.get("norm")
    if norm is not None and norm != "seminorm" and not callable(norm):
        raise TypeError(f"adjoint_options: norm: expected a function or 'seminorm', got {norm!r}")
    options = _with_norm(options, solver)
    control(options, "adjoint_options")
    return options


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


class _Call(NamedTuple):
    """What the backward needs beside tensors: arguments of its solves, and what is around func."""

    solver: Solver
    options: dict
    callbacks: dict
    weights: Weights
    params: tuple
    autocast: object


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Any, y0: Any, t: Any, *params: Any) -> Any:
        task = call.solver.task._replace(y0=y0.detach(), t=t.detach())
        states = call.solver._replace(task=task).states()
        ctx.call = call
        ctx.save_for_backward(states, t, *params)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        states, t, *params = ctx.saved_tensors
        weights = ctx.call.weights
        inner = weights.leaves(ctx.call.params, params)
        gradients = functools.partial(_gradients, ctx.call, ctx.needs_input_grad[2], inner)
        with ctx.call.autocast(), weights.restored(ctx.call.params, inner):
            return None, *one_by_one(gradients, grad, states, t, *params)


def _autocast(device_type):
    """A function of contexts in which autocast is as it is here."""
    if device_type == "meta":
        return contextlib.nullcontext
    here = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return functools.partial(torch.autocast, device_type, *here)


def _gradients(call, of_t, inner, grad, states, t, *params):
    """Those of y0, t and the parameters, which func has as the tensors `inner`."""
    func = _by_row(call.solver.task.func) if call.solver.per_sample else call.solver.task.func
    own = t.dim() == 2  # times of each sample
    through_time = of_t and not own
    seen = [_as_seen(time, states[0]) for time in t]
    grad_t = [torch.zeros_like(time) for time in t]
    sums = (states.new_zeros((), dtype=real_dtype(states)), *map(torch.zeros_like, params))
    a, carried = grad[-1], torch.zeros_like(grad[-1])
    for i in range(len(t) - 1, 0, -1):
        if of_t:  # a later output moves along the solution
            grad_t[i] = _dot(func(seen[i], states[i]), grad[i], own).to(t.dtype)
        if through_time:
            sums = (sums[0] - grad_t[i].to(sums[0]), *sums[1:])
        start = (sums[0], states[i], a, *sums[1:])
        field, way = _in_step(func, t[i - 1], t[i]) if own else (func, t[i - 1 : i + 1].flip(0))
        dynamics = _dynamics(_Vjp(field, inner, through_time), start, params, call.callbacks)
        ends = (part[1] for part in odeint(dynamics, start, way, **call.options))
        first, _, carried, *rest = map(_like, ends, start)
        sums, a = (first, *rest), carried + grad[i - 1]
    grad_t[0] = sums[0].to(t.dtype).expand(t.shape[1:])
    if own and of_t:  # a later beginning moves all that follows
        grad_t[0] = -_dot(func(seen[0], states[0]), carried, own).to(t.dtype)
    return a, torch.stack(grad_t) if of_t else None, *sums[1:]


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


def _like(part, tensor):
    """A part of a state in the dtype it had: side by side all have that of the widest."""
    part = part.real if part.is_complex() and not tensor.is_complex() else part
    return in_dtype(part, tensor.dtype)


def _dynamics(vjp, start, params, callbacks):
    """The derivative of (∫ aᵀ ∂f/∂t, y, a, ∫ aᵀ ∂f/∂θ), a state like start."""

    def dynamics(t, state):
        _, y, a, *_ = map(_like, state, start)
        if torch.is_grad_enabled():
            return _Recorded.apply(vjp, t, y, a, *params)
        with torch.enable_grad():
            parts = vjp(t.detach().requires_grad_(vjp.through_time), y.detach().requires_grad_(), a)
        return [part.detach() for part in parts]

    for name, callback in callbacks.items():
        if callback is not None:
            setattr(dynamics, name, callback)
    return dynamics


class _Vjp(NamedTuple):
    """(t, y, a) → (−aᵀ ∂f/∂t, f, −aᵀ ∂f/∂y, −aᵀ ∂f/∂θ) for leaves t and y of the graph."""

    func: Callable[..., torch.Tensor]
    params: list
    through_time: bool

    def __call__(self, t, y, a, recorded=False):
        inputs = (*((t,) if self.through_time else ()), y, *self.params)
        f = self.func(t, y)
        grads: Any = [None] * len(inputs)  # of a field of time alone, or a constant one
        if f.requires_grad:
            grads = torch.autograd.grad(f, inputs, -a, create_graph=recorded, allow_unused=True)
        if any(grad is None for grad in grads):
            check_used(f, self.params, grads[-len(self.params) :], (t, y))
            grads = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads)]
        grad_t, *grads = grads if self.through_time else (torch.zeros_like(t), *grads)
        return grad_t, f, *grads


class _Recorded(torch.autograd.Function):
    """A `_Vjp` that can be differentiated. Its partial derivatives have a graph of their own: in the one around
    it y depends on the parameters."""

    @staticmethod
    def forward(ctx: Any, vjp: Any, t: Any, y: Any, a: Any, *params: Any) -> Any:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (t, y, a)]
            outputs = vjp(*leaves, recorded=True)
        ctx.inputs, ctx.outputs = (*leaves, *vjp.params), outputs
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("odeint_adjoint: has first and second derivatives; odeint has more")
        pairs = [(output, grad) for output, grad in zip(ctx.outputs, grads) if output.requires_grad]
        if not pairs:
            return (None,) * (len(ctx.inputs) + 1)
        outputs, grads = zip(*pairs)
        return None, *torch.autograd.grad(outputs, ctx.inputs, grads, retain_graph=True, allow_unused=True)


def _dot(f, a, by_row):
    """⟨f, a⟩, or that of each row."""
    products = (f.conj() * a).real if f.is_complex() else f * a
    return products.unsqueeze(-1).flatten(1).sum(1) if by_row else products.sum()

"""A call of `odeint` in one form: one tensor of states, one function of it, times checked."""

import contextlib
import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from flowkern import _torch

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class Problem(NamedTuple):
    """dy/dt = func(t, y), y(t[0]) = y0.

    Attributes:
        func: (t, y) → dy/dt of y's shape and dtype.
        y0: the initial state; tuples are laid side by side, in one dimension or, for steps of each
            sample, in rows.
        t: (T,) the times of the outputs, on y0's device, or (T, N).
        times: the same on the host, a tuple; None where reading them would wait for a device.
        shapes: those of the parts of a tuple, None where y0 was a tensor.
        callbacks: name → function(t, y, h) for those callbacks that the user's function has.
    """

    func: object
    y0: torch.Tensor
    t: torch.Tensor
    times: tuple | None
    shapes: tuple | None
    callbacks: dict

    @property
    def dtype(self) -> Any:
        """That of times which func sees."""
        return real_dtype(self.y0)

    def called(self, name, t, y, h):
        """Call the user's callback of that name, if there is one."""
        if name in self.callbacks:
            self.callbacks[name](t, unflattened(y, self.shapes), h)


def real_dtype(tensor):
    """A tensor's dtype, or that of its real part."""
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def problem(func, y0, t, per_sample=False):
    """Check the arguments of `odeint` and bring them into one form."""
    shapes = None
    if not isinstance(y0, torch.Tensor):
        shapes = _shapes(y0)
    if per_sample:
        _check_rows([y0.shape] if shapes is None else shapes)
    if shapes is not None:
        y0 = flattened(y0, per_sample)
    if not (y0.dtype.is_floating_point or y0.dtype.is_complex):
        raise TypeError(f"y0: expected a floating-point or complex dtype, got {y0.dtype}")
    if y0.layout != torch.strided:
        raise TypeError(f"y0: expected a dense tensor, got {y0.layout}")
    t, times = _times(t, y0, per_sample)
    callbacks = {name: getattr(func, name) for name in CALLBACKS if hasattr(func, name)}
    return Problem(_Field(func, shapes, per_sample), y0, t, times, shapes, callbacks)


def _shapes(y0):
    if not isinstance(y0, tuple) or not y0 or not all(isinstance(part, torch.Tensor) for part in y0):
        got = type(y0).__name__ if y0 else repr(y0)
        raise TypeError(f"y0: expected a tensor or a tuple of tensors, got {got}")
    if len(devices := {str(part.device) for part in y0}) > 1:
        raise ValueError(f"y0: expected parts on one device, got {', '.join(sorted(devices))}")
    return tuple(part.shape for part in y0)


def _check_rows(shapes):
    if any(shape[:1] != shapes[0][:1] or not shape for shape in shapes):
        got = ", ".join(map(str, map(tuple, shapes)))
        raise ValueError(f"y0: steps of each sample need a batch dimension, got shape {got}")


def flattened(parts, per_sample=False):
    """The parts of a state side by side: (numel,), or (N, numel of a sample)."""
    if per_sample:
        return torch.cat([part.reshape(part.shape[0], -1) for part in parts], 1)
    return torch.cat([part.reshape(-1) for part in parts])


def unflattened(y, shapes, leading=()):
    """The inverse of `flattened`, as views; `leading` are the dimensions before those of a state."""
    if shapes is None:
        return y
    rows = y.dim() - len(leading) == 2
    sizes = [math.prod(shape[1:] if rows else shape) for shape in shapes]
    parts = y.split(sizes, -1)
    return tuple(part.reshape((*leading, *shape)) for part, shape in zip(parts, shapes))


class _Field:
    """func on the one tensor of states.

    A func may return the same memory each time, or two in turn, as captured graphs do, if need be after a call
    to warm up. So the first few derivatives are copied, and all others if any two of these share memory.
    """

    _FEW = 4

    def __init__(self, func, shapes, per_sample):
        self.func, self.shapes, self.per_sample = func, shapes, per_sample
        self.seen: list[torch.Tensor] = []
        self.copies: bool | None = None

    def __call__(self, t, y):
        if self.shapes is not None:
            return self._of_parts(t, y)
        f = _fitted(self.func(t, y), y)
        return f if self.copies is False else self._own(f)

    def _of_parts(self, t, y):
        state = unflattened(y, self.shapes)
        f = self.func(t, state)
        if not isinstance(f, (tuple, list)) or len(f) != len(state):
            got = len(f) if isinstance(f, (tuple, list)) else type(f).__name__
            raise ValueError(f"func: expected a derivative of {len(state)} parts, got {got}")
        return flattened([_fitted(*pair) for pair in zip(f, state)], self.per_sample)

    def _own(self, f):
        """f in memory that nothing else writes into."""
        if self.copies or torch.compiler.is_compiling():
            return f.clone()
        shared = any(_torch.is_alias(f, seen) for seen in self.seen)
        self.seen.append(f.detach())
        if shared or len(self.seen) == self._FEW:
            self.copies, self.seen = shared, []
        return f.clone()


def _fitted(f, y):
    """A derivative that broadcasts to the state, in its dtype (under autocast it has another)."""
    if not isinstance(f, torch.Tensor):
        raise TypeError(f"func: expected a tensor like the state, got {type(f).__name__}")
    if f.shape == y.shape and f.dtype == y.dtype and f.device == y.device:
        return f
    fits = broadcasts(f.shape, y.shape) and torch.can_cast(f.dtype, y.dtype)
    if not fits or f.device != y.device:
        want, got = (f"{a.dtype} {tuple(a.shape)} on {a.device}" for a in (y, f))
        raise ValueError(f"func: expected a derivative like the state, {want}, got {got}")
    return f.to(y.dtype).expand(y.shape)


def broadcasts(shape, to):
    """Whether a tensor of a shape expands to another one."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to)))


def number(name, value):
    """The value as a float; a TypeError that names it where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def _times(t, y0, per_sample):
    """The times on y0's device, and on the host where they are at hand there."""
    times = None
    if isinstance(t, (tuple, list)) and any(isinstance(time, torch.Tensor) for time in t):
        t = torch.stack([torch.as_tensor(time, dtype=torch.float64) for time in t])
    if not isinstance(t, torch.Tensor):
        try:
            t, times = torch.tensor(t, dtype=torch.float64), tuple(t)
        except (TypeError, ValueError, RuntimeError):
            got = type(t).__name__
            raise TypeError(f"t: expected a tensor or a list of numbers, got {got}") from None
    if t.is_meta and not y0.is_meta:
        raise ValueError(f"t: expected device {y0.device} as y0 has, got meta")
    if not t.dtype.is_floating_point:
        raise TypeError(f"t: expected a floating-point dtype, got {t.dtype}")
    by_row = per_sample and t.dim() == 2 and t.shape[1] == y0.shape[0]
    if not (t.dim() == 1 or by_row) or len(t) == 0:
        expected = f"(T,) or (T, {len(y0)})" if per_sample else "(T,)"
        raise ValueError(f"t: expected shape {expected}, got {tuple(t.shape)}")
    if by_row:
        return t.to(y0.device), None
    if times is None and t.device.type == "cpu" and not torch.compiler.is_compiling():
        with contextlib.suppress(RuntimeError):  # under vmap there are no values
            times = tuple(t.tolist())
    if times is not None:
        check_monotonic(times)
    return t.to(y0.device), times


def on_host(values):
    """The numbers of a tensor that the steps depend on; NotImplementedError where torch.func.vmap maps over them."""
    if _torch.maps_over(values):
        raise NotImplementedError(
            "vmap: the steps depend on values that torch.func.vmap maps over; solve for the whole batch, by "
            "options={'per_sample': True} with steps of each sample, or on a grid that is not mapped, such as "
            "method='rk4' with a step_size"
        )
    return values.detach().tolist()


def check_rows(t):
    """`check_monotonic` for the times (T, N) of each sample; it waits for their device."""
    onward = (t[1:] - t[:-1]) * torch.where(t[-1] < t[0], -1.0, 1.0)
    if not on_host((onward >= 0).all() & t.isfinite().all()):
        raise ValueError("t: expected times that rise or fall throughout, and finite, for each sample")


def check_monotonic(times):
    """Raise unless the times are finite and rise or fall throughout; equal ones may follow each other."""
    steps = [after - before for before, after in pairwise(times)]
    one_way = all(step >= 0 for step in steps) or all(step <= 0 for step in steps)
    if not one_way or not all(map(math.isfinite, times)):
        raise ValueError(f"t: expected times that rise or fall throughout, and finite, got {list(times)}")

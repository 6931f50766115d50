"""What step control shares: its options, norms, the first step, dense output."""

import math
from typing import NamedTuple

import torch

from flowkern.ode.problem import number, unflattened
from flowkern.ops._arguments import in_dtype


class Control(NamedTuple):
    """Options of adaptive methods, with torchdiffeq's names and values.

    Attributes:
        first_step: chosen from the field where None.
        min_step, max_step: bounds of the step size; a step of min_step is taken whatever its error.
        safety, ifactor, dfactor: a step is multiplied by safety·ratio^(−1/order), in
            [dfactor, ifactor], where ratio is its error in units of the tolerance.
        max_num_steps: the most steps tried, between two outputs (of each sample: in all).
        norm: of the scaled error; default root mean square, of a tuple the largest of its parts.
        step_t: times at which a step has to end; jump_t: and at which the field jumps.
        on_failure: "raise" a `SolverError`, or "warn" (`SolverWarning`).
    """

    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    max_num_steps: int = 2**31 - 1
    norm: object = None
    step_t: object = None
    jump_t: object = None
    on_failure: str = "raise"


def control(options, argument="options"):
    """A `Control` from the options of a call, which errors name as that argument."""
    numbers = ("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps")
    values = {
        name: number(f"{argument}: {name}", v) if name in numbers and (name, v) != ("first_step", None) else v
        for name, v in options.items()
    }
    made = Control(**values)
    _check(made, argument)
    return made


def _check(made, argument):
    if not isinstance(made.on_failure, str) or made.on_failure not in ("raise", "warn"):
        raise ValueError(f"{argument}: on_failure: expected 'raise' or 'warn', got {made.on_failure!r}")
    if not (0 <= made.min_step <= made.max_step and made.max_step > 0):
        raise ValueError(
            f"{argument}: min_step, max_step: expected 0 <= min_step <= max_step and max_step > 0, "
            f"got {made.min_step} and {made.max_step}"
        )
    if not (0 < made.safety <= 1 and 0 < made.dfactor < 1 <= made.ifactor < math.inf):  # else steps would not shrink
        raise ValueError(
            f"{argument}: safety, dfactor, ifactor: expected 0 < safety <= 1 and 0 < dfactor < 1 <= ifactor, finite, "
            f"got {made.safety}, {made.dfactor} and {made.ifactor}"
        )
    if made.first_step is not None and not 0 < made.first_step < math.inf:
        raise ValueError(f"{argument}: first_step: expected a finite number above 0, got {made.first_step}")
    if not made.max_num_steps >= 1:
        raise ValueError(f"{argument}: max_num_steps: expected 1 or more, got {made.max_num_steps}")
    for name in ("step_t", "jump_t"):
        if (times := getattr(made, name)) is not None:
            check_times(f"{argument}: {name}", times)
    if not (made.norm is None or callable(made.norm)):
        raise TypeError(f"{argument}: norm: expected a function, got {made.norm!r}")


def check_times(name, times):
    """Raise unless they are a sequence of numbers, or a tensor (T,) of them."""
    try:
        for time in times.tolist() if isinstance(times, torch.Tensor) else times:
            float(time)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected times, a tensor (T,) or a sequence of numbers, got {times!r}") from None


def rms(tensor):
    """Root mean square of all elements; 0 of none."""
    size = wide(tensor.abs())
    return size.square().mean().sqrt() if size.numel() else size.sum()


def wide(tensor):
    """Half precision as float32: squares, and what is divided by a small step, leave its range."""
    return in_dtype(tensor, torch.promote_types(tensor.dtype, torch.float32))


def state_norm(norm, shapes):
    """A function of a flat state: the norm given, of its parts, or the default one."""

    def of_state(flat):
        parts = unflattened(flat, shapes)
        if norm is not None:
            return torch.as_tensor(norm(parts)).abs()
        return rms(flat) if shapes is None else torch.stack([rms(part) for part in parts]).amax()

    return of_state


@torch.no_grad()
def first_step(func, t0, y0, f0, order, rtol, atol, norm, sign):
    """A first step size, of norm's shape (Hairer, Nørsett, Wanner, II.4)."""
    scale = atol + y0.abs() * rtol
    d0, d1 = wide(norm(y0 / scale)), wide(norm(f0 / scale))
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    f1 = func((t0 + sign * h0).to(t0.dtype), y0 + (sign * h0).to(y0.dtype) * f0)
    d2 = wide(norm((f1 - f0) / scale)) / h0
    flat = (d1 <= 1e-15) & (d2 <= 1e-15)
    h1 = (0.01 / torch.maximum(d1, d2)) ** (1 / order)
    h1 = torch.where(flat, (h0 * 1e-3).clamp(min=1e-6), h1)
    return torch.minimum(100 * h0, h1)


def dense_weights(dense, h, theta):
    """Weights (s,) or (N, s) of the stages at t0 + θh, for float64 h and θ of shape () or (N,)."""
    powers = theta.unsqueeze(-1) ** torch.arange(1, dense.shape[1] + 1, device=theta.device)
    return h * (powers @ dense.mT)


def dense_matrix(method, device):
    """The polynomials of a tableau's dense output, a row for each stage."""
    return torch.tensor(method.dense, dtype=torch.float64, device=device)

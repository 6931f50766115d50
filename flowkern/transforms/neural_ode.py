"""A continuous transform: the flow of a vector field from one time to another."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from flowkern import ops
from flowkern.nn import VectorField
from flowkern.nn._arguments import (
    check_broadcast,
    check_choice,
    check_context,
    check_count,
    check_dtype,
    check_features,
)
from flowkern.ops._arguments import in_dtype, without_autocast
from flowkern.ops._modules import held
from flowkern.ops._neural_ode import METHODS, check_layers, end_of
from flowkern.transforms._hutchinson import noise as hutchinson
from flowkern.transforms.base import Transform


class NeuralODE(Transform):
    """y = x(t_noise) where dx/dt = f(t, x; context) and x(t_data) = x; log|det J| = ∫ Tr ∂f/∂x dt.

    Both directions take the same fixed number of steps of a Runge–Kutta method, so they undo each
    other, and the log-det is that of the map, up to the error of the method.

    Args:
        field: f, a module such as `nn.VectorField`, with `features`, `context`, `layers(context)` and
            `time`, which describe it to `ops.neural_ode`.
        method: euler, midpoint, heun2, heun3, rk4 (the 3/8 rule), rk4_classic, or the formula of
            adaptive_heun, fehlberg2, bosh3, dopri5 or tsit5.
        steps: number of equal steps.
        trace: "exact", or "hutchinson" for the estimate εᵀ ∂f/∂x ε, whose mean over ε is exact, at the
            price of one tangent. ε is fixed during a solve, a new one for each row.
        noise: ε's distribution, "rademacher" (less variance) or "normal".
        seed: None to draw ε by torch's generator, anew for every solve; or an integer, for the same ε in
            every solve and on every device.
        gradient: "discrete", the gradient of the steps as they were taken; or "adjoint", the continuous
            adjoint, without stored states. They differ by the error of the method.
        checkpoint: how many steps lie between states that are stored for the discrete gradient, a
            divisor of steps; those between are computed a second time.
        on_failure: None, and a state that is not finite is returned as it is; "raise" a
            `flowkern.SolverError` with each row's status, or "warn" (`SolverWarning`).
        times: (t_noise, t_data), at which x is noise and data. The default is that of flow matching;
            zuko's CNF has (1.0, 0.0).

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; at the call, x or context has
            the wrong shape or dtype. The error names it.

    Source: Chen et al., Neural Ordinary Differential Equations (2018); Grathwohl et al., FFJORD (2019).

    Example:
        >>> import torch
        >>> from flowkern import nn, transforms
        >>> transform = transforms.NeuralODE(nn.VectorField(3), steps=4)
        >>> y, logabsdet = transform(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        field: nn.Module,
        method: str = "rk4",
        steps: int = 16,
        trace: str = "exact",
        noise: str = "rademacher",
        seed: int | None = None,
        gradient: str = "discrete",
        checkpoint: int = 1,
        times: tuple[float, float] = (0.0, 1.0),
        on_failure: str | None = None,
    ) -> None:
        super().__init__()
        if not callable(getattr(field, "layers", None)):
            raise TypeError(f"field: expected a module with layers, such as nn.VectorField, got {type(field).__name__}")
        check_choice("method", method, METHODS)
        check_choice("trace", trace, ("exact", "hutchinson"))
        check_choice("noise", noise, ("rademacher", "normal"))
        check_choice("gradient", gradient, ("discrete", "adjoint"))
        check_choice("on_failure", on_failure, (None, "raise", "warn"))
        check_count("steps", steps, 1)
        check_count("checkpoint", checkpoint, 1)
        if steps % checkpoint:
            raise ValueError(f"checkpoint: expected a divisor of steps = {steps}, got {checkpoint}")
        if seed is not None:
            check_count("seed", seed, 0)
            if seed >= 2**63:
                raise ValueError(f"seed: expected an integer below 2**63, got {seed}")
        self.field: Any = field
        self.times = _checked_times(times)
        self.steps, self.trace, self.noise, self.seed = steps, trace, noise, seed
        self.options = {
            "method": method, "gradient": gradient, "checkpoint": checkpoint, "on_failure": on_failure,
        }  # fmt: skip

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y (…, features) and logabsdet (…,), from data to noise."""
        return self._map("x", x, context, *reversed(self.times))

    def inverse(self, y: torch.Tensor, context: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (…, features) and logabsdet (…,), from noise to data."""
        return self._map("y", y, context, *self.times)

    def data(self, noise: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """What `inverse` makes of noise (…, features), without the log-det."""
        return self._end("noise", noise, context, *self.times).y

    def forward_and_costs(
        self, x: torch.Tensor, context: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`forward`, and ∫ ‖f‖² |dt| and ∫ ‖∂f/∂x‖² |dt| along the way (Frobenius; by ε its estimate)."""
        y, logabsdet, *costs = self._end(
            "x", x, context, *reversed(self.times), trace=True, kinetic=True, jacobian=True
        )
        sign = 1 if self.times[0] > self.times[1] else -1
        return y, logabsdet, *(sign * cost for cost in costs)

    def trajectory(self, x: torch.Tensor, t: Any, context: torch.Tensor | None = None) -> torch.Tensor:
        """x(t) (T, …, features) at times t, a sequence of numbers in order, with x(t[0]) = x (…, features).

        No step is longer than those of the transform.
        """
        t = [float(time) for time in t]
        if not t or not all(map(math.isfinite, t)):
            raise ValueError(f"t: expected finite times, at least one, got {t}")
        length = abs(self.times[1] - self.times[0]) / self.steps
        gaps = [abs(b - a) for a, b in zip(t, t[1:])]
        steps = max(1, math.ceil(max(gaps, default=0.0) / length - 1e-6))
        t = torch.tensor(t, dtype=torch.float64, device=x.device)
        solve = partial(_path, t)
        return self._solve(solve, "x", x, context, steps, {**self.options, "checkpoint": 1}).y

    def _map(
        self, name: str, x: torch.Tensor, context: torch.Tensor | None, start: float, end: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        solution = self._end(name, x, context, start, end, trace=True)
        return solution.y, solution.logabsdet

    def _end(self, name, x, context, start, end, **wanted):
        """The `Solution` at the end alone."""

        def solve(x, layers, **options):
            return end_of(x, layers, start, (end - start) / self.steps, **options)

        return self._solve(solve, name, x, context, self.steps, self.options, **wanted)

    def _solve(self, solve, name, x, context, steps, options, trace=False, **costs):
        check_features(name, x, self.field.features)
        check_context(context, self.field.context)
        known = type(self.field) is VectorField
        parameter = self.field.weight if known else next((tensor for _, _, tensor in held(self.field)), x)
        x = _converted(name, x, parameter)
        context = None if context is None else _converted("context", context, parameter)
        with without_autocast(x.device.type):
            layers, time = self.field.described(context) if known else self._described(x, context)
            trace = self._trace(name, x, context) if trace else None
            return solve(x, layers, steps=steps, time=time, trace=trace, **options, **costs)

    def _described(self, x, context):
        """(layers, time) of a field that others made, checked."""
        layers, time = tuple(self.field.layers(context)), self.field.time
        check_layers(x, layers, time)
        return layers, time

    def _trace(self, name, x, context):
        if self.trace == "exact":
            return "exact"
        batch = x.shape[:-1]
        if context is not None:
            batch = check_broadcast("context", context.shape[:-1], name, batch)
        return hutchinson(self.noise, (1, *batch, x.shape[-1]), self.seed, x)

    def extra_repr(self) -> str:
        options = {"steps": self.steps, "trace": self.trace, **self.options, "times": self.times}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _path(t, x, layers, **options):
    return ops.neural_ode(x, layers, t, **options)


def _converted(name: str, x: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """x in the parameters' dtype: under autocast it may come in another."""
    check_dtype(name, x, parameter)
    return in_dtype(x, parameter.dtype)


def _checked_times(times: tuple[float, float]) -> tuple[float, float]:
    try:
        start, end = map(float, times)
    except (TypeError, ValueError):
        raise ValueError(f"times: expected two numbers (t_noise, t_data), got {times!r}") from None
    if start == end or not math.isfinite(start) or not math.isfinite(end):
        raise ValueError(f"times: expected two different finite numbers, got {times!r}")
    return start, end

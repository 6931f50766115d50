"""A whole ODE solve of a network field in one kernel, with ∫ Tr ∂f/∂y and its gradients."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from flowkern import _torch, backends
from flowkern.ops._activation import Activation
from flowkern.ops._arguments import check_tensor, constants, in_dtype, size
from flowkern.ops._function import needs_gradient
from flowkern.ops._neural_ode.field import FieldLayer, TimeEmbedding
from flowkern.ops._neural_ode.function import apply
from flowkern.ops._neural_ode.native import kernels
from flowkern.ops._neural_ode.reference import Spec
from flowkern.ops._status import check_finite
from flowkern.ops._tableau import TABLEAUX

__all__ = ["FieldLayer", "METHODS", "Solution", "TimeEmbedding", "neural_ode"]

MOST_STAGES = 8  # csrc/neural_ode/cuda.h: what a kernel's arguments hold


def _methods() -> Any:
    """{name: (a row after row, b, c), as the kernels take them} of all methods that they have room for."""
    tables = {name: method.fixed() for name, method in TABLEAUX.items()}
    return {
        name: (tuple(entry for row in a for entry in row), b, c)
        for name, (a, b, c) in tables.items()
        if len(b) <= MOST_STAGES
    }


METHODS = _methods()


class Solution(NamedTuple):
    """What `neural_ode` returns at each of its times; None where it was not asked for.

    y: (T, …, D).  logabsdet: log|det ∂y(t)/∂y(t₀)| = ∫ Tr ∂f/∂y dt, (T, …).
    kinetic: ∫ ‖f‖² dt, (T, …).  jacobian: ∫ ‖∂f/∂y‖² dt (Frobenius), or its estimate, (T, …).
    """

    y: torch.Tensor
    logabsdet: torch.Tensor | None
    kinetic: torch.Tensor | None
    jacobian: torch.Tensor | None


def neural_ode(
    y: torch.Tensor,
    layers: Sequence[FieldLayer],
    t: torch.Tensor,
    *,
    method: str = "rk4",
    steps: int = 1,
    time: TimeEmbedding | None = None,
    trace: str | torch.Tensor | None = None,
    kinetic: bool = False,
    jacobian: bool = False,
    gradient: str = "discrete",
    checkpoint: int = 1,
    on_failure: str | None = None,
) -> Solution:
    """Solve dy/dt = f(t, y) for a network f by a Runge–Kutta method with given steps.

    Along d ln p/dt = −Tr ∂f/∂y, so ln p(y(t), t) = ln p(y(t₀), t₀) − logabsdet.

    Args:
        y: y(t₀) (…, D), float32/float64, or float16/bfloat16 (computed in float32).
        layers: f, a sequence of `FieldLayer`. Batch dimensions of the first bias broadcast with y's.
        t: the times (T,) at which the solution is wanted, ascending or descending (checked on the CPU alone);
            t[0] is t₀.
        method: euler, midpoint, heun2, heun3, rk4 (the 3/8 rule, as in torchdiffeq), rk4_classic, or the formula
            of adaptive_heun, fehlberg2, bosh3, dopri5 or tsit5 with steps as given.
        steps: how many equal steps lead from each time to the next.
        time: the `TimeEmbedding` added in the first layer; None for an autonomous field.
        trace: None, "exact", or noise ε (…, D) or (M, …, D) with E εεᵀ = 1 for Hutchinson's estimate
            εᵀ ∂f/∂y ε, the mean over M.
        kinetic, jacobian: integrate ‖f‖² and ‖∂f/∂y‖² too (with noise ‖∂f/∂y ε‖²); the latter needs
            a trace.
        gradient: "discrete", the gradient of the steps as they were taken, from one state in
            `checkpoint` steps; or "adjoint", the continuous adjoint equation solved backwards from each
            time, without stored states: its memory does not grow with steps. They differ by the error of
            the method.
        checkpoint: a divisor of steps; the states between are computed a second time.
        on_failure: None, and a state that is not finite is returned as it is; "raise" a `SolverError` with
            each sample's `Status`, or "warn" (`SolverWarning`). The latter two read from the device, and
            interrupt a compiled graph.

    Returns:
        A `Solution`; y in y's dtype, the rest in float32 (float64 if any input is).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the chosen backend cannot run here.
        SolverError: with on_failure="raise", the end is not finite.

    Source: Chen et al., Neural Ordinary Differential Equations (2018), eq. 8 and algorithm 1;
        Grathwohl et al., FFJORD (2019), eq. 8; Finlay et al., How to Train Your Neural ODE (2020).

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> layers = [ops.FieldLayer(torch.randn(8, 2), activation="tanh"), ops.FieldLayer(torch.randn(2, 8))]
        >>> solution = ops.neural_ode(torch.zeros(5, 2), layers, torch.tensor([0.0, 1.0]), steps=8, trace="exact")
        >>> solution.y.shape, solution.logabsdet.shape
        (torch.Size([2, 5, 2]), torch.Size([2, 5]))
    """
    layers = _tuple(layers)
    _check(y, layers, t, method, time, steps, checkpoint, gradient, jacobian and trace is None, on_failure)
    exact = in_dtype(t, torch.promote_types(t.dtype, _compute_dtype(y, layers)))
    sizes = (exact[1:] - exact[:-1]) / steps
    start, ends, sums, batch = _solve(
        y, layers, exact[:-1], sizes, method, steps, time, trace, kinetic, jacobian, gradient, checkpoint
    )
    path = torch.cat((start.unsqueeze(0), ends))
    sums = torch.cat((sums.new_zeros(1, *sums.shape[1:]), sums))
    solution = _solution(path, sums, (len(path), *batch), y.dtype, (trace is not None, kinetic, jacobian))
    if on_failure is not None:
        _check_end([part[-1] for part in solution if part is not None], method, on_failure)
    return solution


def end_of(
    y,
    layers,
    start,
    size,
    *,
    method="rk4",
    steps=1,
    time=None,
    trace=None,
    kinetic=False,
    jacobian=False,
    gradient="discrete",
    checkpoint=1,
    on_failure=None,
):
    """The `Solution` at the end of one interval alone, y (…, D) and integrals (…,).

    For callers whose arguments are known to fit: no more is checked than noise, batch shapes and what the
    kernels check.

    Args:
        start, size: numbers, when the interval begins and the size of its steps.
        others: as for `neural_ode`.
    """
    _, ends, sums, batch = _solve(
        y, layers, start, size, method, steps, time, trace, kinetic, jacobian, gradient, checkpoint
    )
    solution = _solution(ends[0], sums[0], batch, y.dtype, (trace is not None, kinetic, jacobian))
    if on_failure is not None:
        _check_end([part for part in solution if part is not None], method, on_failure)
    return solution


def _solve(
    y,
    layers,
    starts,
    sizes,
    method,
    steps,
    time,
    trace,
    kinetic,
    jacobian,
    gradient,
    checkpoint,
):
    """y as (N, D), the ends (I, N, D) and sums (I, 3, N) of intervals, and the batch shape that N is of.

    starts, sizes: (I,), or numbers for one interval.
    """
    dtype = _compute_dtype(y, layers)
    batch = _batch(y, layers[0].bias)
    weights = [in_dtype(layer.weight, dtype) for layer in layers]
    directions = _directions(trace, y, batch, weights, jacobian, dtype)
    closed = _closed(weights) if trace is not None and directions is None else None
    bias, row_bias = _first_bias(layers[0], batch, dtype)
    inputs = (
        _times(starts, y, dtype), _times(sizes, y, dtype), row_bias, *_embedding(time, dtype), closed, directions,
        *weights, bias, *(None if layer.bias is None else in_dtype(layer.bias, dtype) for layer in layers[1:]),
    )  # fmt: skip
    start = _rows(in_dtype(y, dtype), batch)
    adjoint = gradient == "adjoint"
    every = steps if adjoint or not needs_gradient((start, *inputs)) else checkpoint
    kinds = [Activation.of(layer.activation).numbers() for layer in layers[:-1]]
    a, b, c = (constants(*row) for row in METHODS[method])
    (weight,) = constants(1.0 if directions is None or isinstance(trace, str) else 1.0 / size(directions, 0))
    spec = Spec(
        tuple(k for k, _ in kinds), constants(*(s for _, s in kinds)),
        a, b, c, steps, every, weight, kinetic, jacobian,
    )  # fmt: skip
    backend = backends.resolve(y.device.type, kernels(len(layers)))
    return start, *apply(start, backend, adjoint, spec, *inputs), batch


def _times(times, y, dtype):
    if isinstance(times, torch.Tensor):
        return in_dtype(times, dtype)
    return torch.full((1,), times, dtype=dtype, device=y.device)


def _rows(y, batch):
    """y (…, D) as (N, D), with a batch shape that its own broadcasts to."""
    if y.shape[:-1] != batch:
        y = y.expand(*batch, y.shape[-1])
    return y if len(batch) == 1 else y.reshape(math.prod(batch), y.shape[-1])


def _check_end(end: Any, method: str, on_failure: str) -> None:
    """Raises or warns if any sample's state or integral, the tensors of `end`, is not finite."""
    y, *integrals = end
    finite = y.isfinite().all(-1)
    for integral in integrals:
        finite = finite & integral.isfinite()
    check_finite(finite, method, on_failure)


def _solution(y: Any, sums: torch.Tensor, shape: Any, dtype: torch.dtype, wanted: tuple[bool, bool, bool]) -> Solution:
    """The `Solution` of states (…, N, D) and sums (…, 3, N), whose leading dimensions become `shape`."""
    y = in_dtype(y, dtype)
    some = (sums[..., i, :] if want else None for i, want in enumerate(wanted))
    if y.dim() == len(shape) + 1:
        return Solution(y, *some)
    return Solution(y.reshape(*shape, y.shape[-1]), *(part if part is None else part.reshape(shape) for part in some))


def _first_bias(
    layer: FieldLayer, batch: torch.Size, dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The first layer's bias (H,) for all samples, and that (N, H) per sample; None for none."""
    if layer.bias is None:
        return None, None
    bias = in_dtype(layer.bias, dtype)
    if bias.dim() == 1:
        return bias, None
    units = layer.weight.shape[0]
    return None, bias.expand(*batch, units).reshape(-1, units)


def _embedding(time, dtype):
    if time is None:
        return None, None
    return in_dtype(time.weight, dtype), None if time.frequencies is None else in_dtype(time.frequencies, dtype)


def _directions(
    trace: Any, y: torch.Tensor, batch: torch.Size, weights: Sequence[torch.Tensor], jacobian: bool, dtype: torch.dtype
) -> torch.Tensor | None:
    """ε (M, N, D): the noise, or for an exact trace without a closed form the unit vectors."""
    rows, features = math.prod(batch), y.shape[-1]
    if trace is None:
        return None
    if isinstance(trace, torch.Tensor):
        noise = _noise(trace, y, batch, dtype)
        return noise.reshape(noise.shape[0], rows, features)
    if not isinstance(trace, str) or trace != "exact":
        raise ValueError(f"trace: expected None, 'exact' or a tensor of noise, got {trace!r}")
    if len(weights) in (2, 3) and not jacobian:
        return None
    return torch.eye(features, dtype=dtype, device=y.device).unsqueeze(1).expand(-1, rows, -1)


def _noise(noise: torch.Tensor, y: torch.Tensor, batch: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """ε as (M, …, D) with y's batch shape."""
    _check_tensor("trace", noise, y, None)
    noise = noise.detach().to(dtype)
    noise = noise if noise.dim() > y.dim() else noise.unsqueeze(0)
    if noise.shape[0] == 0:
        raise ValueError("trace: expected at least one noise")
    try:
        return noise.expand(noise.shape[0], *batch, y.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"trace: expected noise that broadcasts with y, {(*batch, y.shape[-1])}, or with one more "
            f"dimension in front, got {tuple(noise.shape)}"
        ) from None


def _closed(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """m_j = (W₂)_ij (W₁)_ji summed over i, or M = W₂ ∘ (W₁W₃)ᵀ: see the README."""
    if len(weights) == 2:
        return (weights[0] * weights[1].mT).sum(1)
    # In float64, which neither TF32 nor autocast rounds; it is small.
    between = weights[0].double() @ weights[2].double()
    return weights[1] * between.mT.to(weights[1].dtype)


def _compute_dtype(y: torch.Tensor, layers: tuple[FieldLayer, ...]) -> torch.dtype:
    tensors = [y, *(t for layer in layers for t in (layer.weight, layer.bias) if t is not None)]
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _batch(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Size:
    if bias is None or bias.dim() == 1:
        return y.shape[:-1]
    try:
        return torch.broadcast_shapes(y.shape[:-1], bias.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"layers[0].bias: batch shape {tuple(bias.shape[:-1])} does not broadcast with that of y, "
            f"{tuple(y.shape[:-1])}"
        ) from None


def _tuple(layers: Sequence[FieldLayer]) -> tuple[FieldLayer, ...]:
    if isinstance(layers, FieldLayer) or not isinstance(layers, Iterable):
        raise TypeError(f"layers: expected a sequence of FieldLayer, got {type(layers).__name__}")
    return tuple(layers)


def _check(
    y: torch.Tensor,
    layers: tuple[FieldLayer, ...],
    t: torch.Tensor,
    method: Any,
    time: TimeEmbedding | None,
    steps: int,
    checkpoint: int,
    gradient: str,
    jacobian_alone: bool,
    on_failure: Any,
) -> None:
    _check_tensor("y", y, y, None)
    if y.shape[-1] == 0:
        raise ValueError("y: expected at least one feature")
    if not isinstance(t, torch.Tensor) or t.dim() != 1 or t.shape[0] < 1 or not t.is_floating_point():
        raise ValueError("t: expected a floating-point tensor (T,) of at least one time")
    if t.device != y.device:
        raise ValueError(f"t: expected device {y.device} as y has, got {t.device}")
    _check_times(t)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    for name, value in (("steps", steps), ("checkpoint", checkpoint)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if steps % checkpoint:
        raise ValueError(f"checkpoint: expected a divisor of steps = {steps}, got {checkpoint}")
    if not isinstance(gradient, str) or gradient not in ("discrete", "adjoint"):
        raise ValueError(f"gradient: expected 'discrete' or 'adjoint', got {gradient!r}")
    if not (on_failure is None or isinstance(on_failure, str) and on_failure in ("raise", "warn")):
        raise ValueError(f"on_failure: expected None, 'raise' or 'warn', got {on_failure!r}")
    if jacobian_alone:
        raise ValueError("jacobian: needs a trace, 'exact' or noise")
    check_layers(y, layers, time)


def _check_times(t: torch.Tensor) -> None:
    """Times on the host rise or fall throughout; on a device none are read."""
    if t.device.type != "cpu" or torch.compiler.is_compiling() or _torch.is_wrapped(t):
        return
    times = t.tolist()
    steps = [after - before for before, after in zip(times, times[1:])]
    one_way = all(step >= 0 for step in steps) or all(step <= 0 for step in steps)
    if not one_way or not all(map(math.isfinite, times)):
        raise ValueError(f"t: expected times that rise or fall throughout, and finite, got {times}")


def check_layers(y, layers, time):
    """Raise unless the layers and the `TimeEmbedding` describe a field of y's features."""
    if not layers:
        raise ValueError("layers: expected at least one")
    inputs = y.shape[-1]
    for k, layer in enumerate(layers):
        if not isinstance(layer, FieldLayer):
            raise TypeError(f"layers[{k}]: expected a FieldLayer, got {type(layer).__name__}")
        _check_tensor(f"layers[{k}].weight", layer.weight, y, None)
        units = layer.weight.shape[0] if k + 1 < len(layers) else y.shape[-1]
        _check_tensor(f"layers[{k}].weight", layer.weight, y, (units, inputs))
        if layer.bias is not None:
            _check_tensor(f"layers[{k}].bias", layer.bias, y, None)
            leading = layer.bias.shape[:-1] if k == 0 else ()
            _check_tensor(f"layers[{k}].bias", layer.bias, y, (*leading, units))
        inputs = units
    if Activation.of(layers[-1].activation).kind != "identity":
        raise ValueError("layers: the last one's activation must be 'identity'")
    if not isinstance(time, TimeEmbedding | None):
        raise TypeError(f"time: expected a TimeEmbedding or None, got {type(time).__name__}")
    if time is not None:
        if time.frequencies is not None:
            _check_tensor("time.frequencies", time.frequencies, y, None)
        columns = 1 if time.frequencies is None else 2 * time.frequencies.numel()
        if time.frequencies is not None:
            _check_tensor("time.frequencies", time.frequencies, y, (columns // 2,))
        _check_tensor("time.weight", time.weight, y, (layers[0].weight.shape[0], columns))


def _check_tensor(name: str, tensor: torch.Tensor, y: torch.Tensor, shape: tuple[int, ...] | None) -> None:
    check_tensor(name, tensor, y, of="y")
    if tensor.dim() < 1 or shape is not None and tuple(tensor.shape) != tuple(shape):
        expected = "(…, D)" if shape is None else tuple(shape)
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")

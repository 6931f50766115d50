"""How far a backend's results and gradients are from those of the float64 reference on the CPU."""

from typing import Any, NamedTuple

import torch

from flowkern import backends
from flowkern.backends import backend

# Most roundings of the largest value of a tensor by which any of its elements may be wrong. Measured worst on the
# CPU: 45 by the kernels, 42 by the reference itself in float32.
MOST = 256
DTYPES = (torch.float32, torch.float64)


class Outcome(NamedTuple):
    """The worst error of results and of gradients, in roundings; or what was raised; or None, without a kernel."""

    results: float | None = None
    gradients: float | None = None
    raised: str | None = None

    @property
    def measured(self) -> Any:
        return self.results is not None

    @property
    def wrong(self) -> Any:
        errors = (self.results, self.gradients)
        return self.raised is not None or any(not error <= MOST for error in errors if error is not None)

    def __str__(self) -> str:
        if self.raised:
            return "error"
        if self.results is None or self.gradients is None:
            return "–"
        return f"{max(self.results, self.gradients):.1f}" + " wrong" * self.wrong


def devices() -> Any:
    """The devices that kernels are for: the CPU, and each GPU that torch sees."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def candidates(device):
    """(backend, dtype) of all that runs on this device, the reference among them."""
    kind = torch.device(device).type
    interpreted = ("triton",) if backends.triton_interpreted() else ()
    mine = {"cpu": ("reference", "cpu", *interpreted), "cuda": ("reference", "triton", "cuda")}[kind]
    names = [name for name in mine if backends.unavailable(name) is None]
    exact = ("reference", "cpu", torch.float64)  # what the others are compared with
    return [(name, dtype) for name in names for dtype in DTYPES if (name, device, dtype) != exact]


def outcome(problem, name, device, dtype):
    """The `Outcome` of backend `name` on a problem."""
    inputs = [tensor.to(dtype) for tensor in problem.tensors]
    with backend("reference"):
        want = _evaluate(problem, [tensor.double() for tensor in inputs])
    try:
        with backend(name):
            got = _evaluate(problem, [tensor.to(device) for tensor in inputs])
    except backends.NoKernelError:
        return Outcome()
    except Exception as error:  # whatever it is, the others are checked too
        return Outcome(raised=f"{type(error).__name__}: {error}")
    results, gradients = (max(map(_roundings, g, w), default=0.0) for g, w in zip(got, want))
    return Outcome(results, gradients)


def _evaluate(problem, inputs):
    """(results, gradients of a fixed linear function of them); the error of a step has none."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = problem.call(*leaves)
    loss = sum((result * _cotangent(result)).sum() for result in results)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else ()
    return [result.detach() for result in results], [g for g in gradients if g is not None]


def _cotangent(result):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)


def _roundings(got, want):
    """The largest error in roundings of the largest value; infinite where a value is not a number."""
    if got.shape != want.shape:
        return float("inf")
    error = (got.detach().cpu().double() - want).abs().nan_to_num(float("inf")).max()
    return (error / (torch.finfo(got.dtype).eps * want.abs().max())).item()

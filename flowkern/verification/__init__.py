"""`accelerate(model)`, and `verify(model, example)`: whether it gives the original's numbers on a user's batch."""

import contextlib
import copy
import math
import warnings
from typing import Any

import torch

from flowkern import adapters
from flowkern.adapters import explain, restore
from flowkern.adapters._held import roots
from flowkern.profiling.libraries import library_of
from flowkern.verification.calls import calls_of
from flowkern.verification.result import Check, Verification

__all__ = ["Check", "Verification", "accelerate", "verify"]

_WORSE = 4  # how many times as far from float64 as the original
_UNITS = 32  # roundings that are allowed too
_EXACT = 1e-8  # of two computations in float64
_SMALL = 1e-3  # smaller gradients count as that large


def accelerate(model: Any, ode: dict[str, Any] | None = None, check: Any = None) -> Any:
    """Let fused kernels compute the layers of `model` that flowkern knows, with the same numbers.

    In place and at any depth. Each layer is first compared with its own formulas on a few points,
    and left as it is if they differ. Call it again after adding layers, or with other steps. A model
    with nothing to accelerate stays as it is, with a warning. `explain(model)` tells what was done.

    Args:
        model: any `torch.nn.Module`, or an object that holds some in its attributes, lists or dictionaries, as
            sbi's posteriors do.
        ode: how to solve differential equations whose solver chooses its steps by itself (zuko's CNF,
            flow_matching's ODESolver, torchdyn's NeuralODE), so that their numbers become those of
            other steps: `steps`, and if need be `method`, `gradient`, `checkpoint` and `on_failure`
            of `ops.neural_ode`, as a dictionary. Without it they are left as they are.
            `flowkern.ode_error` measures what it changes.
        check: an example for `flowkern.verify`, on which the accelerated model must give the original's numbers.

    Returns:
        model.

    Raises:
        TypeError: model is no `torch.nn.Module` and holds none.
        TypeError, ValueError: ode is no such dictionary, or an option has the wrong value; or check is no example.
        RuntimeError: the numbers are others on the example. The model is then restored.

    Example:
        >>> import torch, flowkern, zuko
        >>> flow = flowkern.accelerate(zuko.flows.NSF(features=3, context=2))
        >>> flow(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    adapters.accelerate(model, ode, stacklevel=2)
    if check is None:
        return model
    try:
        result = verify(model, check)
    except Exception:
        restore(model)
        raise
    if not result:
        restore(model)
        raise RuntimeError(f"check: the accelerated model gives other numbers and was restored\n{result}")
    return model


def verify(model: Any, example: Any) -> Verification:
    """Compare a model's numbers with those of the library that it comes from, on a batch.

    Compared are values, log-dets, gradients of inputs and parameters, and of a flow that can be inverted the distance
    of f(f⁻¹(y)) from y; in float64, where both must agree to 1e-8, and in the model's own precision, where the
    accelerated model must be no further from the original in float64 than the original is (up to a factor of 4 and 32
    roundings).
    Copies are compared, in the mode (train or eval) of the model and under the same seeds; a model that is not
    accelerated is so in the copy.

    Args:
        model: a `torch.nn.Module`, or an object that holds one flow, as a posterior does.
        example: x (N, …), or a tuple of x and context: the inputs of a flow's log_prob; of another module, what it is
            called with.

    Returns:
        A `Verification`: true if all agrees; `print` it or `show()` it; `as_dict()` for its figures.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or the model cannot be called with it.

    Example:
        >>> import torch, flowkern, zuko
        >>> report = flowkern.verify(zuko.flows.NSF(3, transforms=1), torch.randn(64, 3))
        >>> report.agrees
        True
    """
    model = _module(model)
    arguments = _arguments(example)
    with _as_before(model):
        fast = _accelerated(model)
        plain = restore(copy.deepcopy(fast))
        try:
            checks = _checks(plain, fast, arguments)
            return Verification(type(model).__name__, len(arguments[0]), len(explain(fast).replaced), tuple(checks))
        finally:
            restore(fast)  # an accelerated model refers to itself


# What is compared.


def _checks(plain, fast, arguments):
    own = next((p.dtype for p in plain.parameters() if p.is_floating_point()), arguments[0].dtype)
    exact = _numbers(_in(plain, torch.float64), _cast(arguments, torch.float64), torch.float64)
    reason = exact.pop("error", None)
    if reason:
        raise ValueError(f"example: the model raised {reason}")
    for dtype in dict.fromkeys((torch.float64, own)):
        given = _cast(arguments, dtype)
        one = exact if dtype == torch.float64 else _numbers(_in(plain, dtype), given, dtype)
        yield from _compared(exact, one, _numbers(_in(fast, dtype), given, dtype), dtype)
        if calls_of(plain) is not None:
            yield from _residuals(plain, fast, arguments, exact, dtype)


def _compared(exact, plain, fast, dtype):
    for what, wanted in exact.items():
        distances, note = [], ""
        for which, found in (("original", plain), ("accelerated model", fast)):
            if "error" in found:
                note = f"In {_name(dtype)} the {which} raised {found['error']}"
            least = _SMALL if "gradient" in what else 1.0
            distances.append(math.inf if "error" in found else _distance(found[what], wanted, least))
        yield Check(what, _name(dtype), *distances, _bound(distances[0], dtype), note)


def _bound(original, dtype):
    return _EXACT if dtype == torch.float64 and original == 0 else _WORSE * original + _UNITS * torch.finfo(dtype).eps


def _numbers(model, arguments, dtype):
    """What is compared → the tensors; "error" → what the model raised."""
    try:
        with _default(dtype):
            return dict(_outputs(model, arguments))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _outputs(model, arguments):
    library, calls = library_of(model), calls_of(model)
    if library is not None:
        yield from _with_gradients("log_prob", model, arguments, lambda x, c=None: (library.log_prob(model, x, c),))
    if calls is not None:
        yield from _with_gradients("value, log-det", model, arguments, lambda x, c=None: calls.forward(model, x, c))
    elif library is None:
        yield from _with_gradients("output", model, arguments, lambda *given: _tensors(model(*given)))


def _with_gradients(what, model, arguments, call):
    torch.manual_seed(0)
    leaves = [a.clone().requires_grad_() if _is_real(a) else a for a in arguments]
    outputs = [output for output in call(*leaves) if _is_real(output)]
    for name, output in zip(what.split(", "), outputs):
        yield name, [output.detach()]
    total = sum((output.double() * _weights(output)).sum() for output in outputs)
    if not total.requires_grad:
        return
    inputs, parameters = [a for a in leaves if _is_real(a)], [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, [*inputs, *parameters], allow_unused=True, materialize_grads=True)
    yield f"{what}: gradient of inputs", gradients[: len(inputs)]
    if parameters:
        yield f"{what}: gradient of parameters", gradients[len(inputs) :]


def _weights(output):
    return torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64, device=output.device).view_as(output)


def _residuals(plain, fast, arguments, exact, dtype):
    """The distance of f(f⁻¹(y)) from y, and of the two log-dets from each other."""
    context = arguments[1] if len(arguments) > 1 else None
    y, judge = exact["value"][0].to(dtype), _in(plain, torch.float64)
    distances, note = {"inverse": [], "inverse log-det": []}, ""
    for model in (plain, fast):
        try:
            x, logabsdet = _inverse(_in(model, dtype), y, context, dtype)
            again, back = _forward(judge, x, context)
        except Exception as error:
            note = f"The inverse in {_name(dtype)} raised {type(error).__name__}: {error}"
            again, back, logabsdet = (
                torch.full_like(t[0], math.nan) for t in (exact["value"], *[exact["log-det"]] * 2)
            )
        distances["inverse"].append(_distance([again], [y]))
        distances["inverse log-det"].append(_distance([-logabsdet], [back]))
    for what, (original, accelerated) in distances.items():
        bound = max(_bound(original, dtype), _EXACT if dtype == torch.float64 else 0)
        yield Check(what, _name(dtype), original, accelerated, bound, note)


@torch.no_grad()
def _inverse(model, y, context, dtype):
    with _default(dtype):
        return calls_of(model).inverse(model, y, context if context is None else context.to(dtype))


@torch.no_grad()
def _forward(model, x, context):
    with _default(torch.float64):
        return calls_of(model).forward(model, x.double(), context if context is None else context.double())


def _distance(found, wanted, least=1.0):
    """The largest distance, relative to the largest number wanted, or `least`; equal infinities and NaN are none."""
    scale = max((w[w.isfinite()].abs().max().item() for w in wanted if w.isfinite().any()), default=0.0)
    return max((_apart(f.double(), w.double()) for f, w in zip(found, wanted)), default=0.0) / max(scale, least)


def _apart(found, wanted):
    if not found.numel():
        return 0.0
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    apart = (found - wanted).abs().where(~same, 0.0)
    return apart.nan_to_num(nan=math.inf, posinf=math.inf).max().item()


# The model and its example.


def _module(model):
    found = [
        root for _, root in roots(model) if isinstance(model, torch.nn.Module) or calls_of(root) or library_of(root)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"model.{name}" for name, _ in roots(model))
    raise TypeError(f"model: expected a torch.nn.Module or an object that holds one flow, got one that holds {names}")


def _arguments(example):
    arguments = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not arguments or not _is_real(arguments[0]) or arguments[0].dim() == 0:
        got = type(arguments[0]).__name__ if arguments else "nothing"
        raise TypeError(f"example: expected a floating-point tensor, or a tuple that begins with one, got {got}")
    if not len(arguments[0]):
        raise ValueError("example: expected at least one row, got none")
    return tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)


def _is_real(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _tensors(output):
    """All tensors in what a module returns."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [t for one in output for t in _tensors(one)] if isinstance(output, (tuple, list)) else []


def _cast(arguments, dtype):
    return tuple(a.to(dtype) if _is_real(a) else a for a in arguments)


def _in(model, dtype):
    """A copy in this dtype."""
    return copy.deepcopy(model).to(dtype)


def _accelerated(model):
    copied = copy.deepcopy(model)
    if explain(copied).replaced:
        return copied
    with warnings.catch_warnings():  # the result says it if there is nothing to accelerate
        warnings.simplefilter("ignore", UserWarning)
        return adapters.accelerate(copied)


def _name(dtype):
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _as_before(model):
    """Ordinary tensors with gradients inside, whatever the caller's mode; the random state is put back."""
    devices = {tensor.device.index for tensor in model.state_dict().values() if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices)), torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def _default(dtype):
    """New tensors in this dtype, as normflows sums its log-dets in the default one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == torch.float64 else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

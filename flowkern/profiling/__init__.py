"""`profile(model, batch)`: what a flow's training step, log_prob and samples cost before and after `accelerate`."""

import contextlib
import copy
import functools
import math
import numbers
import time
import warnings
from typing import Any

import torch

from flowkern.adapters import accelerate, restore
from flowkern.adapters._held import roots
from flowkern.profiling.libraries import library_of
from flowkern.profiling.result import LayerTime, Optimiser, Profile, Step, Work
from flowkern.profiling.rounds import measure

__all__ = ["LayerTime", "Optimiser", "Profile", "Step", "Work", "profile"]

_FLOWS = "a flow of nflows, zuko, normflows (NormalizingFlow) or flowkern, or what holds one"


def profile(model: Any, batch: torch.Tensor, context: torch.Tensor | None = None, *, seconds: float = 5.0) -> Profile:
    """Time a flow before and after `accelerate`, find what its time goes to, and say what would help next.

    Copies of the model are timed in interleaved rounds: one restored (plain) and one accelerated. The model
    itself, its gradients and the random state stay as they are. Training steps run in training mode (loss
    −mean log_prob, Adam at a learning rate of 0), log_prob and sampling in evaluation mode without gradients.

    Args:
        model: a flow of nflows, zuko, normflows (NormalizingFlow) or flowkern, an estimator of sbi, or an object
            that holds one such flow, as a posterior does.
        batch: (N, …) data, as for the flow's log_prob.
        context: (N, …) context, or None.
        seconds: about how long to measure; every call is made at least twice.

    Returns:
        A `Profile`: `print` it or `show()` it (by rich if it is installed); `as_dict()` for its figures, in seconds.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the error names it.

    Example:
        >>> import torch, flowkern, zuko
        >>> result = flowkern.profile(zuko.flows.NSF(3, transforms=1), torch.randn(64, 3), seconds=0.1)
        >>> result.rows, result.accelerated
        (64, True)
    """
    model, library = _flow_of(model)
    _check_rows(batch, context)
    _check_seconds(seconds)
    end = time.perf_counter() + seconds
    with _as_before(model), _progress(end) as on_round:
        batch = batch.detach().clone()
        context = None if context is None else context.detach().clone()
        plain, fast = _copy(model, restore), _copy(model, _accelerated)
        try:
            _check_runs(library, plain, batch, context)
            return measure(library, plain, fast, batch, context, end, on_round)
        finally:
            restore(fast)  # an accelerated model refers to itself


def _flow_of(model):
    """(the flow, its `Library`): the model itself, or the only flow that an object which is no module holds."""
    if isinstance(model, torch.nn.Module):
        library = library_of(model)
        if library is None:
            inner = next((name for name, module in model.named_modules() if library_of(module)), None)
            hint = f", whose submodule {inner!r} is one" if inner else ""
            raise TypeError(f"model: expected {_FLOWS}, got {type(model).__name__}{hint}")
        return model, library
    flows = {name: root for name, root in roots(model) if library_of(root)}
    if len(flows) != 1:
        which = f"several: {', '.join(f'model.{name}' for name in flows)}" if flows else "no such flow"
        raise TypeError(f"model: expected {_FLOWS}, got {type(model).__name__}, which holds {which}")
    (flow,) = flows.values()
    return flow, library_of(flow)


def _check_rows(batch, context):
    if not isinstance(batch, torch.Tensor) or not batch.is_floating_point():
        got = batch.dtype if isinstance(batch, torch.Tensor) else type(batch).__name__
        raise TypeError(f"batch: expected a floating-point tensor, got {got}")
    if batch.dim() < 2 or len(batch) == 0:
        raise ValueError(f"batch: expected shape (N, features) with N > 0, got {tuple(batch.shape)}")
    if context is None:
        return
    if not isinstance(context, torch.Tensor):
        raise TypeError(f"context: expected a tensor or None, got {type(context).__name__}")
    if context.dim() < 2 or len(context) != len(batch):
        raise ValueError(f"context: expected shape ({len(batch)}, …) as batch, got {tuple(context.shape)}")


def _check_seconds(seconds):
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        raise TypeError(f"seconds: expected a number, got {type(seconds).__name__}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: expected a positive number, got {seconds}")


def _check_runs(library, model, batch, context):
    try:
        with torch.no_grad():
            library.log_prob(model, batch, context)
    except Exception as error:
        what = "batch" if context is None else "batch, context"
        raise ValueError(f"{what}: the model's log_prob raised {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _as_before(model):
    """Ordinary tensors with gradients inside, whatever the caller's mode; the random state is put back."""
    devices = {tensor.device.index for tensor in model.state_dict().values() if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices)), torch.inference_mode(False), torch.enable_grad():
        yield


def _copy(model, change):
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(f"model: expected one that copy.deepcopy can copy, got the error: {error}") from error
    return change(copied)


def _accelerated(model):
    with warnings.catch_warnings():  # the profile says it if there is nothing to accelerate
        warnings.simplefilter("ignore", UserWarning)
        return accelerate(model)


@contextlib.contextmanager
def _progress(end):
    """A progress bar on stderr, if that is a terminal and rich is installed; yields what moves it on."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda: None
        return
    console, start = Console(stderr=True), time.perf_counter()
    # No thread that refreshes it: that would run beside what is timed.
    bar = Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("flowkern.profile", total=end - start)
        yield functools.partial(_advance, bar, task, start)


def _advance(bar, task, start):
    bar.update(task, completed=time.perf_counter() - start)
    bar.refresh()

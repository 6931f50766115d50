"""What is timed, and the `Profile` made of it."""

import copy
import dataclasses
import functools
import math
import time

import torch

from flowkern.adapters import explain
from flowkern.profiling.advice import advice
from flowkern.profiling.result import (
    FORWARD_BACKWARD,
    LOG_PROB,
    SAMPLING,
    STEP,
    STEP_FUSED,
    LayerTime,
    Optimiser,
    Profile,
    Step,
    Work,
)
from flowkern.report.machine import cores
from flowkern.report.timing import interleaved, quartiles

_SAMPLE_SECONDS = 1e-3  # a shorter call is repeated
_MAX_ROUNDS = 200
_PLAIN, _FAST = _FLOWS = ("plain", "accelerated")
_LEFT = "at present computed by its own code: "  # the words of `explain`


def measure(library, plain, fast, batch, context, end, on_round):
    """The `Profile` of a flow of `library`.

    Args:
        plain, fast: the flow and its accelerated twin, to be used up.
        end: when to stop, on the clock of `time.perf_counter`.
        on_round: called after every round, for a progress bar.
    """
    trained = {_PLAIN: _in_training(plain), _FAST: _in_training(fast)}
    flows = {_PLAIN: plain.eval(), _FAST: fast.eval()}
    adams = {which: _adams(flow) for which, flow in trained.items()}
    few = min(len(batch), _few_rows(plain))
    refused = _sampling_error(library, plain, few, context)
    layers = _layers(library, flows, batch, context)
    calls = {(i, which): layer.calls[which] for i, layer in enumerate(layers) for which in _FLOWS}
    for size, rows in (("batch", len(batch)), ("few", few)):
        x, c = batch[:rows], None if context is None else context[:rows]
        for which in _FLOWS:
            works = _training(library, trained[which], adams[which], x, c)
            works |= _evaluation(library, flows[which], x, c, not refused)
            calls |= {(work, which, size): call for work, call in works.items()}
    # Last, when there are gradients.
    calls |= {("Adam", kind): adam.step for kind, adam in adams[_FAST].items()}
    timings = _timed(calls, batch.device, end, on_round)
    explained = explain(trained[_FAST])
    profile = Profile(
        model=type(plain).__name__,
        rows=len(batch),
        few=few,
        **_surroundings(batch),
        rounds=len(timings[LOG_PROB, _PLAIN, "batch"].seconds),
        accelerated=bool(explained.replaced),
        works=_works(timings),
        steps={which: _step(timings, which) for which in _FLOWS if adams[which]},
        optimiser=_optimiser(timings),
        layers=_layer_times(layers, timings, explained),
        notes=(f"Sampling is not timed: {refused}",) if refused else (),
    )
    return dataclasses.replace(profile, advice=advice(profile))


def _surroundings(batch):
    dtype = str(batch.dtype).removeprefix("torch.")
    return {"device": str(batch.device), "dtype": dtype, "threads": torch.get_num_threads(), "cores": cores()}


# What is called.


def _in_training(flow):
    """A copy in training mode; one that is in it already keeps what its user put in evaluation mode."""
    copied = copy.deepcopy(flow)
    return copied if copied.training else copied.train()


def _few_rows(flow):
    """1, or 2 where batch normalisation needs a variance."""
    names = {cls.__name__ for module in flow.modules() for cls in type(module).__mro__}
    return 2 if any("BatchNorm" in name for name in names) else 1


def _adams(flow):
    """STEP and STEP_FUSED → optimiser; empty where nothing is trained.

    The learning rate is 0, so that every step does the same work at the same weights.
    """
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    if not weights:
        return {}
    adams = {STEP: torch.optim.Adam(weights, lr=0.0)}
    try:
        adams[STEP_FUSED] = torch.optim.Adam(weights, lr=0.0, fused=True)
    except RuntimeError:  # not for these dtypes or this device
        pass
    return adams


def _training(library, flow, adams, x, context):
    if not adams:
        return {}
    passes = functools.partial(_forward_backward, library, flow, adams[STEP], x, context)
    steps = {name: functools.partial(_both, passes, adam.step) for name, adam in adams.items()}
    return {FORWARD_BACKWARD: passes, **steps}


def _forward_backward(library, flow, adam, x, context):
    adam.zero_grad()
    (-library.log_prob(flow, x, context).mean()).backward()


def _both(first, second):
    first()
    second()


def _evaluation(library, flow, x, context, samples):
    works = {LOG_PROB: functools.partial(library.log_prob, flow, x, context)}
    if samples:
        works[SAMPLING] = functools.partial(library.sample, flow, len(x), context)
    return {name: torch.no_grad()(call) for name, call in works.items()}


def _sampling_error(library, flow, rows, context):
    """Why the flow cannot sample, or None."""
    try:
        with torch.no_grad():
            library.sample(flow, rows, None if context is None else context[:rows])
    except Exception as error:  # a library's own, such as nflows' InverseNotAvailable
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return None


@dataclasses.dataclass
class _Layer:
    name: str
    kind: str
    calls: dict  # flow → call


@torch.no_grad()
def _layers(library, flows, batch, context):
    """Each layer of log_prob, to be called on the input that it has within the plain flow."""
    names = {id(module): name for name, module in flows[_PLAIN].named_modules()}
    return [
        _Layer(
            names[id(module)],
            type(module).__name__,
            {
                which: torch.no_grad()(functools.partial(call, flow.get_submodule(names[id(module)]), *arguments))
                for which, flow in flows.items()
            },
        )
        for module, call, arguments in library.layers(flows[_PLAIN], batch, context)
    ]


# How it is timed.


def _timed(calls, device, end, on_round):
    if device.type != "cpu":
        calls = {key: functools.partial(_both, call, _finish(device)) for key, call in calls.items()}
    seconds = max(0.0, end - time.perf_counter())
    return interleaved(calls, rounds=_MAX_ROUNDS, sample_seconds=_SAMPLE_SECONDS, seconds=seconds, on_round=on_round)


def _finish(device):
    """Waits until the device has done what it was given."""
    return functools.partial(torch.accelerator.synchronize, device)


# What comes out.


def _works(timings):
    names = (STEP, STEP_FUSED, FORWARD_BACKWARD, LOG_PROB, SAMPLING)
    return tuple(_work(timings, name) for name in names if (name, _PLAIN, "batch") in timings)


def _work(timings, name):
    plain, fast = (timings[name, which, "batch"] for which in _FLOWS)
    few = (timings[name, which, "few"].median for which in _FLOWS)
    speedups = fast.speedups_over(plain)
    return Work(name, plain.median, fast.median, *few, fast.speedup_over(plain), quartiles(speedups))


def _step(timings, which):
    optimiser = timings["Adam", STEP].median
    fixed = timings[FORWARD_BACKWARD, which, "few"].median
    growing = max(0.0, timings[STEP, which, "batch"].median - optimiser - fixed)
    total = optimiser + fixed + growing
    return Step(optimiser / total, fixed / total, growing / total)


def _optimiser(timings):
    if ("Adam", STEP) not in timings:
        return None
    fused = timings.get(("Adam", STEP_FUSED))
    return Optimiser(timings["Adam", STEP].median, fused and fused.median)


def _layer_times(layers, timings, explained):
    seconds = {which: [timings[i, which].median for i in range(len(layers))] for which in _FLOWS}
    totals = [math.fsum(seconds[which]) for which in _FLOWS]
    return tuple(
        LayerTime(
            layer.name, layer.kind, *times, *(time / total for time, total in zip(times, totals)),
            *_explained(explained, layer.name),
        )
        for layer, times in zip(layers, zip(*seconds.values()))
    )  # fmt: skip


def _explained(explained, name):
    """(what `explain` says of a layer, why it is not accelerated or "").

    If it says nothing of the layer itself, then what it says of those inside.
    """
    parts = (("accelerated", explained.replaced), ("not accelerated", explained.left))
    said = [(title, layer) for title, layers in parts for layer in layers]
    inside = [s for s in said if s[1].name.startswith(name + ".")]
    found = [s for s in said if s[1].name == name] or inside
    notes = dict.fromkeys(f"{title}: {layer.note}" for title, layer in found)
    reasons = dict.fromkeys(filter(None, (_reason(*s) for s in found)))
    return "; ".join(notes), "; ".join(reasons)


def _reason(title, layer):
    return layer.note if title == "not accelerated" else layer.note.partition(_LEFT)[2]

"""Times eager, torch.compile and flowkern side by side: training step, log_prob, sampling."""

import copy
import time
from dataclasses import dataclass, field

import torch

import flowkern
from demo import digits, spline_flow
from flowkern.report.timing import interleaved

SAMPLES_PER_CLASS = 25
KINDS = 3  # training step, log_prob, sampling


@dataclass
class Work:
    """One kind of work: how fast each way of doing it is, and why a way could not be timed."""

    title: str
    items: int  # rows that one call handles
    timings: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)
    compile_seconds: float | None = None


def measure(trained, data, settings, on_compile, on_round):
    """One Work for each of training step, log_prob and sampling.

    Every way works on a copy of `trained`. nflows' own inverse may stop on rounding and
    torch.compile needs a working compiler, so what fails in its first call is left out, with the
    reason.

    Args:
        on_compile: `on_compile(title)` is a context manager around a compilation.
        on_round: called after every round of every work.
    """
    torch.manual_seed(3)
    rows = spline_flow.batch(data, settings.batch)
    samples = SAMPLES_PER_CLASS * digits.CLASSES
    kinds = [
        (Work("training step", settings.batch), _training_call),
        (Work("log_prob", settings.batch), _log_prob_call),
        (Work("sampling", samples), _sampling_call),
    ]
    for work, make in kinds:
        calls = _warm_calls(work, make, trained, rows, settings, on_compile)
        work.timings = interleaved(
            calls,
            rounds=settings.rounds,
            sample_seconds=settings.sample_seconds,
            on_round=on_round,
        )
    return [work for work, _ in kinds]


def _warm_calls(work, make, trained, rows, settings, on_compile):
    calls = {"eager": make(copy.deepcopy(trained), rows, _as_it_is)}
    if settings.compile:
        torch.compiler.reset()
        calls["torch.compile"] = make(copy.deepcopy(trained), rows, torch.compile)
    calls["flowkern"] = make(flowkern.accelerate(copy.deepcopy(trained)), rows, _as_it_is)
    for name in list(calls):
        if name == "torch.compile":
            with on_compile(work.title):
                work.compile_seconds = _warm(name, calls, work)
        else:
            _warm(name, calls, work)
    return calls


def _warm(name, calls, work):
    """Call three times and return the seconds; on failure note the reason and drop the call."""
    start = time.perf_counter()
    try:
        for _ in range(3):
            calls[name]()
    except Exception as error:  # see measure: third-party code that may fail in its own ways
        lines = str(error).strip().splitlines()
        work.refused[name] = ": ".join([type(error).__name__, *lines[:1]])
        del calls[name]
    return time.perf_counter() - start


def _as_it_is(function):
    return function


def _training_call(flow, rows, wrap):
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-5)
    log_prob = wrap(flow.log_prob)
    return lambda: spline_flow.training_step(log_prob, optimizer, *rows)


def _log_prob_call(flow, rows, wrap):
    logits, _, classes = rows
    log_prob = wrap(flow.eval().log_prob)
    return torch.no_grad()(lambda: log_prob(logits, classes))


def _sampling_call(flow, rows, wrap):
    sample = wrap(flow.eval().sample)
    classes = torch.eye(digits.CLASSES)

    def call():
        torch.manual_seed(4)  # the same noise, so that what the first call does, all do
        return sample(SAMPLES_PER_CLASS, classes)

    return torch.no_grad()(call)

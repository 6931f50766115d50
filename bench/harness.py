"""Check every candidate of a table against float64, then time them all in interleaved rounds.

A table is one piece of work (an op or a flow, a direction, a batch size) and the candidates that
do it. Because the rounds visit every candidate in turn, a machine that slows down slows all of
them, and a ratio taken within each round holds where absolute times drift.
"""

import gc
import itertools
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from flowkern.report.memory import peak_memory


class Candidate(NamedTuple):
    """One implementation of a table's work.

    Args:
        name: "compile(…)" marks what torch.compile made, "limit …" a physical limit.
        make: `make(inputs)` builds `call(*inputs[i])`, which returns tensors; a list of tensors
            among them is checked as one long vector.
        plain: `plain(dtype)` builds the plain eager version that defines the right result. In
            float64 it is the truth; its own error in float32 says how far off one may be.
            None for a limit, which computes nothing.
        ours: the flowkern candidate of the same maths, with which this one is compared.
    """

    name: str
    make: Callable
    plain: Callable | None
    ours: str = "flowkern"


class Table(NamedTuple):
    """`inputs()` builds the sets of tensors that successive calls rotate through.

    A candidate's error may be `floor` in any case.
    """

    name: str
    title: str
    inputs: Callable
    candidates: tuple
    floor: float = 2e-6


class Effort(NamedTuple):
    rounds: int
    sample_seconds: float
    warm_up_calls: int


FULL = Effort(rounds=11, sample_seconds=0.03, warm_up_calls=20)
QUICK = Effort(rounds=1, sample_seconds=0.0, warm_up_calls=0)
TIMING = "timing"


def effort(quick):
    return QUICK if quick else FULL


def measure(table, effort, refused, tell):
    """Run `table` and return it as plain data: samples of each candidate, or why it was refused.

    Args:
        refused: candidates that are not to run, and why.
        tell: called with the name of each candidate before its check, and with TIMING.

    Returns:
        The table; or, if the checks refuse further candidates, those as a tuple of pairs like
        the items of `refused`, and nothing is timed.
    """
    torch.manual_seed(0)
    inputs = table.inputs()
    rows, timers = check_all(table, inputs, Timer, refused, tell)
    new = {row["name"]: row["refused"] for row in rows if "refused" in row}
    if len(new) > len(refused):
        return tuple(new.items())
    tell(TIMING)
    for timer in timers:
        timer.prepare(effort)
    gc.collect()
    load = ForeignLoad()
    for round_ in range(effort.rounds):
        for timer in timers if round_ % 2 == 0 else reversed(timers):
            timer.sample()
    foreign = load.share()
    for timer in timers:
        timer.row["peak_bytes"] = peak_memory(timer.once)
    return {"name": table.name, "title": table.title, "foreign_load": foreign, "candidates": rows}


def check_all(table, inputs, timer, refused, tell):
    """A row for each candidate, and `timer(call, inputs, row)` for each that passed its check."""
    rows, timers, truths = [], [], {}
    for candidate in table.candidates:
        row = {"name": candidate.name, "ours": candidate.ours}
        rows.append(row)
        if candidate.name in refused:
            row["refused"] = refused[candidate.name]
            continue
        tell(candidate.name)
        try:
            call = candidate.make(inputs)
            if candidate.plain is not None:
                if candidate.plain not in truths:
                    truths[candidate.plain] = Truth(candidate.plain, inputs[0], table.floor)
                row.update(truths[candidate.plain].check(call(*inputs[0])))
            for others in inputs[1:]:
                call(*others)
            timers.append(timer(call, inputs, row))
        except Exception as error:  # whatever a candidate does wrong, the others are still measured
            reason = " ".join(str(error).split())
            row["refused"] = f"{type(error).__name__}: {reason[:200]}"
    return rows, timers


class WrongResult(Exception):
    """A candidate's result is further from float64 than float32 explains."""


class Truth:
    """The float64 result, and for each output the relative error that a candidate may have.

    The error of an output b is the mean over its elements of |a − b| / (|b| + mean |b|), so that a
    few huge gradients cannot hide wrong small ones. Some of these problems are ill-conditioned (the
    inverse of a nearly flat bin), so what float32 costs is not assumed but measured, on the plain
    version; candidates order their sums differently, hence the factor.
    """

    FACTOR = 8

    def __init__(self, plain, inputs, floor):
        double = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
        self.outputs = _vectors(plain(torch.float64)(*double))
        errors = self._errors(_vectors(plain(torch.float32)(*inputs)))
        self.allowed = [max(self.FACTOR * error, floor) for error in errors]

    def check(self, outputs):
        """The worst error and its allowance; raises WrongResult if an output exceeds its own."""
        vectors = _vectors(outputs)
        if [v.shape for v in vectors] != [v.shape for v in self.outputs]:
            raise WrongResult(f"{len(vectors)} outputs or their sizes differ from the reference's")
        pairs = list(zip(self._errors(vectors), self.allowed))
        for i, (error, allowed) in enumerate(pairs):
            if not error <= allowed:
                raise WrongResult(f"output {i}: relative error {error:.1e}, allowed {allowed:.1e}")
        error, allowed = max(pairs, key=lambda pair: pair[0] / pair[1])
        return {"error": error, "allowed": allowed}

    def _errors(self, vectors):
        return [_error(a, b) for a, b in zip(vectors, self.outputs)]


def _error(a, b):
    size = b.abs()
    return float(((a - b).abs() / (size + size.mean()).clamp_min(1e-30)).mean())


def _vectors(outputs):
    lists = [o if isinstance(o, list) else [o] for o in outputs]
    return [torch.cat([t.detach().double().flatten() for t in tensors]) for tensors in lists]


class Timer:
    """Takes samples of one candidate, each of about `sample_seconds` of back-to-back calls."""

    def __init__(self, call, inputs, row):
        self.call, self.inputs, self.row = call, itertools.cycle(inputs), row
        row.update(seconds=[], cpu=[], faults=[])

    def once(self):
        self.call(*next(self.inputs))

    def prepare(self, effort):
        """Call until the allocator has all its pages, then choose the calls per sample."""
        for _ in range(effort.warm_up_calls):
            before = _page_faults()
            self.once()
            if _page_faults() == before:
                break
        best = min(self._run(1)[0] for _ in range(3)) if effort.sample_seconds else math.inf
        self.row["calls"] = max(1, round(effort.sample_seconds / best))

    def sample(self):
        """Add one sample; an untimed call first brings this candidate's data back into cache."""
        self.once()
        calls = self.row["calls"]
        wall, cpu, faults = self._run(calls)
        self.row["seconds"].append(wall / calls)
        self.row["cpu"].append(cpu / wall)
        self.row["faults"].append(faults / calls)

    def _run(self, calls):
        call, inputs = self.call, self.inputs
        gc.disable()
        faults, cpu, wall = _page_faults(), time.process_time(), time.perf_counter()
        for _ in range(calls):
            call(*next(inputs))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        gc.enable()
        return wall, cpu, _page_faults() - faults


def _page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class ForeignLoad:
    """The share of the machine's CPU time that other processes take while this one measures."""

    def __init__(self):
        self.start = self._now()

    def share(self):
        """Between 0 and 1, or None where the system does not tell (no /proc/stat)."""
        if self.start is None:
            return None
        busy, total, own = (b - a for a, b in zip(self.start, self._now()))
        return min(1.0, max(0.0, busy - own) / max(total, 1e-9))

    @staticmethod
    def _now():
        try:
            with open("/proc/stat") as file:
                ticks = [int(t) for t in file.readline().split()[1:9]]
        except OSError:
            return None
        total = sum(ticks) / os.sysconf("SC_CLK_TCK")
        idle = (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK")
        return total - idle, total, time.process_time()


def paired_ratio(row, other):
    """How many times longer `row` takes than `other`: the median over rounds of the ratio."""
    return statistics.median(a / b for a, b in zip(row["seconds"], other["seconds"]))

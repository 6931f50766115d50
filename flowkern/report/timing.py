"""Times several ways of doing the same work in interleaved rounds.

Every round visits each way once, so that a machine which slows down slows all of them, and a ratio
taken within each round holds where absolute times drift.
"""

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Timing:
    """Seconds per call and CPU seconds per call, one entry for each round."""

    seconds: list = field(default_factory=list)
    cpu_seconds: list = field(default_factory=list)

    @property
    def median(self) -> Any:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> Any:
        return quartiles(self.seconds)

    @property
    def busy_cores(self) -> Any:
        """CPU time over wall time: shows a second thread that got no core of its own."""
        return statistics.median(c / s for c, s in zip(self.cpu_seconds, self.seconds))

    def speedups_over(self, other):
        """How many times faster this is than `other`, round by round."""
        return [theirs / ours for ours, theirs in zip(self.seconds, other.seconds)]

    def speedup_over(self, other):
        return statistics.median(self.speedups_over(other))


def quartiles(values):
    """The lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def interleaved(calls, *, rounds, sample_seconds, seconds=math.inf, on_round=lambda: None):
    """Time each of `calls` in `rounds` rounds; one sample is back-to-back calls.

    Args:
        calls: name → function of no arguments, already warm (or warmed by the one call that tells how often
            to repeat it, if that matters less than the time).
        sample_seconds: how long a sample takes at least.
        seconds: after how long no further round begins; there is at least one.
        on_round: called after every round, for a progress bar.

    Returns:
        name → Timing.
    """
    start = time.perf_counter()
    repeats = {name: _repeats(call, sample_seconds) for name, call in calls.items()}
    timings = {name: Timing() for name in calls}
    for round_ in range(rounds):
        # Every other round runs backwards, so that none always follows the same neighbour.
        for name in list(calls) if round_ % 2 == 0 else reversed(calls):
            _sample(calls[name], repeats[name], timings[name])
        on_round()
        if time.perf_counter() - start > seconds:
            break
    return timings


def _repeats(call, sample_seconds):
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    return max(1, round(sample_seconds / once))


def _sample(call, repeats, timing):
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    timing.cpu_seconds.append((time.process_time() - cpu) / repeats)
    timing.seconds.append((time.perf_counter() - wall) / repeats)


def duration(seconds):
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"

"""Device time of calls, by events, with nothing of their data left in the L2 cache."""

import statistics
import time

import torch

AHEAD = 2_000_000  # clock ticks, a millisecond, that the device waits while the host runs ahead


class Stopwatch:
    """On the CPU, where a dry run only proves that the code runs, a plain clock."""

    def __init__(self, gate):
        self._flush = None
        if not gate.dry_run:
            size = max(4 * torch.cuda.get_device_properties().L2_cache_size, 2**28)
            self._flush = torch.zeros(size // 4, dtype=torch.int32, device="cuda")

    def seconds(self, call):
        """Of one call. The cache is filled by reading: what is written would be moved out within the call."""
        if self._flush is None:
            return self._wall(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.max()
        torch.cuda._sleep(AHEAD)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def samples(self, call, seconds, most=11):
        """Times after two calls that do not count: at least one, and at most as many as take so long."""
        call(), call()
        end, times = time.perf_counter() + seconds, []
        while len(times) < most and not (times and time.perf_counter() > end):
            times.append(self.seconds(call))
        return times

    def median(self, call, seconds=1.0, most=11):
        return statistics.median(self.samples(call, seconds, most))

    def back_to_back(self, call, seconds, most=1000):
        """Seconds per call on the host's clock, of calls one after the other: cache as they leave it."""
        once = max(self._wall(call), 1e-7)
        calls = max(1, min(most, int(seconds / once)))
        return self._wall(lambda: [call() for _ in range(calls)]) / calls

    def _wall(self, call):
        self._synchronize()
        start = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self):
        if self._flush is not None:
            torch.cuda.synchronize()

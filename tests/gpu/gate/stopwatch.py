"""Device time of calls, by events, with nothing of their data left in the L2 cache."""

import statistics
import time

import torch


class Stopwatch:
    """On the CPU, where a dry run only proves that the code runs, a plain clock."""

    def __init__(self, gate):
        self._flush = None
        if not gate.dry_run:
            size = max(4 * torch.cuda.get_device_properties().L2_cache_size, 2**28)
            self._flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def seconds(self, call):
        """Of one call. Filling the cache takes the device long enough for the host to run ahead."""
        if self._flush is None:
            return self._wall(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def back_to_back(self, call, calls):
        """Seconds per call on the host's clock, of calls one after the other: cache as they leave it."""
        return self._wall(lambda: [call() for _ in range(calls)]) / calls

    def median(self, call, samples):
        """Median of `samples` after two calls that do not count."""
        call(), call()
        return statistics.median(self.seconds(call) for _ in range(samples))

    def _wall(self, call):
        self._synchronize()
        start = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self):
        if self._flush is not None:
            torch.cuda.synchronize()

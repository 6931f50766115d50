"""What the process allocates: an allocator that keeps its pages, and the peak of one call."""

import ctypes
import json
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_pages():
    """Tell glibc never to return memory to the system, and say what the allocator does.

    By default each tensor above 32 MiB comes from mmap and is faulted in page by page, which costs
    eager code up to three times what its arithmetic does. The same as MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=<huge> in the environment, without having to restart the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1):
        return "glibc, keeps its pages (mmap_max=0, trim_threshold=max)"
    return "system default"


def peak_memory(call):
    """Bytes that torch's CPU allocator holds at the peak of `call()`, above what it held before.

    The profiler's record of every allocation and release, so the result depends on neither the
    C allocator nor the process's history, as a resident set size would.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    if not memory:
        return 0
    start = memory[0]["args"]["Total Allocated"] - memory[0]["args"]["Bytes"]
    return max(0, max(e["args"]["Total Allocated"] for e in memory) - start)

"""The peak of what one call allocates."""

import json
import os
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

# Or the profiler announces each of its stages on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


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

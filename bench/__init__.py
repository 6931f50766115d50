"""Benchmarks of flowkern against its peers, torch.compile and the physical limit."""

import os

# The profiler, which measures memory, announces each of its stages on stderr unless told not to
# before torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

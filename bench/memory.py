"""An allocator that keeps its pages."""

import ctypes

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

"""How long the parts of a run take. The environment's FLOWKERN_TIMES names a file in which they are collected."""

import contextlib
import os
import time
from collections import Counter
from pathlib import Path


@contextlib.contextmanager
def part(name):
    """What is done inside is a part of that name; parts that run side by side have the machine's cores together."""
    start = time.perf_counter()
    try:
        yield
    finally:
        note(name, time.perf_counter() - start)


def note(name, seconds):
    line = f"{seconds:6.0f} s  {name}\n"
    print(line, end="", flush=True)
    if "FLOWKERN_TIMES" in os.environ:
        with open(os.environ["FLOWKERN_TIMES"], "a") as file:
            file.write(line)


def of_tests(reports):
    """(file of tests, seconds that its tests took on all processes), the longest first."""
    total = Counter()
    for report in reports:
        total[report.nodeid.partition("::")[0]] += report.duration
    return total.most_common()


def collected():
    return Path(os.environ["FLOWKERN_TIMES"]).read_text() if "FLOWKERN_TIMES" in os.environ else ""

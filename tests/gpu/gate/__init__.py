"""The gate: everything that needs a GPU, within ten minutes, by one command: `python -m tests.gpu.gate`.

A part is a module with

    items(gate) -> its `Item`s, the most important first
    section(results) -> (title, lines of HTML) of the report on its results (optional)

The parts run in this order, each until its time; what is left of one is the next one's. What could spoil a timing, by
its processes or by a fault, comes after all that is timed. One process runs a part's items one after the other, and
goes on with the next part: torch is imported once. Where several share a part, they are others.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Part(NamedTuple):
    name: str
    module: str
    end: float  # seconds after the gate's begin by which it has ended
    processes: int = 1


class Item(NamedTuple):
    """`run()` returns plain data, with a list "failures" if something is wrong.

    seconds: what it is expected to take on an H200, compilation included; it is not begun if less is left.
    """

    name: str
    seconds: float
    run: Callable[[], dict]


PARTS = (
    Part("limits", "tests.gpu.gate.limits", 15),
    Part("smoke", "tests.gpu.gate.smoke", 45, 8),
    Part("own", "bench.gpu.own", 120),
    Part("variants", "tests.gpu.gate.variants", 150),
    Part("libraries", "bench.gpu.libraries", 200),
    Part("counters", "tests.gpu.gate.counters", 260),
    Part("sanitizer", "tests.gpu.gate.sanitizer", 320),
    Part("autotune", "tests.gpu.gate.autotune", 400),
    Part("correctness", "tests.gpu.gate.correctness", 560, 10),
    Part("compiled", "bench.gpu.compiled", 590),
)


def module(part):
    """That has the functions of the part."""
    return importlib.import_module(part.module)

"""The gate: everything that needs a GPU, by one command, `python -m tests.gpu.gate`.

A part is a module with

    names(gate, results) -> the names of its items; results(part) are those of an earlier part
    run(name, gate) -> plain data, with a list "failures" if something is wrong
    missing(gate) -> what keeps the part from being run at all, or "" (optional)
    stamp(gate) -> text; the items run again when it changes (optional)
    after(gate, results) -> called with all the part's results when one has been added (optional)
    section(results) -> (title, lines of Markdown) of the report on what was measured (optional)

Every item runs in a process of its own, so that a crash or a hang costs that item alone. What measures speed
is part of the benchmarks, which the gate knows by these names alone.
"""

import importlib

PARTS = {
    **{part: f"tests.gpu.gate.{part}" for part in ("build", "correctness", "sanitizer", "limits", "autotune")},
    **{part: f"bench.gpu.{part}" for part in ("speed", "counters")},
}


def module(part):
    """That has the functions of the part."""
    return importlib.import_module(PARTS[part])

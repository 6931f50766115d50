"""The gate: everything that needs a GPU, by one command, `python -m bench.gpu_gate`.

A part is a module of this folder with

    names(gate, results) -> the names of its items; results(part) are those of an earlier part
    run(name, gate) -> plain data, with a list "failures" if something is wrong
    missing(gate) -> what keeps the part from being run at all, or "" (optional)
    stamp(gate) -> text; the items run again when it changes (optional)
    after(gate, results) -> called with all the part's results when one has been added (optional)

Every item runs in a process of its own, so that a crash or a hang costs that item alone.
"""

PARTS = ("build", "correctness", "sanitizer", "limits", "autotune", "speed", "counters")

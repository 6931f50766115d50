"""`python -m flowkern check`: every op on every device there is, each backend against the float64 reference."""

import importlib.util
import shutil
import sys
from typing import Any

import torch

from flowkern import backends
from flowkern.check.measure import MOST, candidates, devices, outcome
from flowkern.ops._problem import all_problems
from flowkern.report.machine import processor
from flowkern.report.table import Table


def check() -> Any:
    """Print a table for each device, and what is wrong; return whether nothing is."""
    faults = []
    for device in devices():
        columns = candidates(device)
        measured = [(p, [outcome(p, name, device, dtype) for name, dtype in columns]) for p in all_problems()]
        _print(_table(device, columns, measured))
        faults += [
            f"{problem.op}, {problem.direction}, by {name} on {device} in {_short(dtype)}: {_wrong(found)}"
            for problem, found_all in measured
            for (name, dtype), found in zip(columns, found_all)
            if found.wrong
        ]
    for name in backends.NAMES:
        if backends.unavailable(name):
            print(f"{name} was not checked: {backends.unavailable(name)}")
    print("\n".join(["", "Wrong:", *faults]) if faults else "Everything that was checked is right.")
    return not faults


def _wrong(found):
    return found.raised or f"results by {found.results:.3g} roundings, gradients by {found.gradients:.3g}"


def _table(device, columns, measured):
    rows = [(p.op, p.direction, *map(str, outcomes)) for p, outcomes in measured]
    note = f"Worst error of results and of gradients, in roundings of the largest value; at most {MOST} is right."
    header = ("op", "direction", *(f"{name} {_short(dtype)}" for name, dtype in columns))
    return Table(f"{device}: {_name(device)}", header, rows, (note,))


def _short(dtype):
    return str(dtype).removeprefix("torch.")


def _name(device):
    return processor() if device == "cpu" else torch.cuda.get_device_name(device)


def _print(table):
    if importlib.util.find_spec("rich"):
        from rich.console import Console

        table.show(Console(width=None if sys.stdout.isatty() else 120))
    else:
        print(table.text(shutil.get_terminal_size().columns))
    print()

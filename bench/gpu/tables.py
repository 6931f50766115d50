"""The tables of the CPU benchmark at sizes for a GPU, checked in the same way (bench/harness.py).

flowkern takes part twice, on the backend that it chooses and on its Triton kernels. A candidate takes few rounds, and
no more once it has taken long.
"""

import functools
import itertools
import statistics

import torch

import flowkern
from bench import harness, ops, report
from bench.tables import MODULES
from flowkern.report.table import grid
from flowkern.report.timing import duration

ROUNDS, SECONDS = 3, 2.0
DRY_BATCH = 3


def items(wanted, seconds, gate, compiled=()):
    """An Item for each table of these: (name without its batch size, batch size)."""
    names = [f"{name}-{DRY_BATCH if gate.dry_run else batch}" for name, batch in wanted]
    return [gate.item(name, seconds, lambda name=name: run(name, gate, compiled)) for name in dict.fromkeys(names)]


def tables(gate, compiled=()):
    """{name: Table} with the tensors on the gate's device."""
    modules = (module for module in MODULES if hasattr(module, "on_gpu"))
    chosen = (table for module in modules for table in module.tables(**module.on_gpu(gate.dry_run, compiled)))
    return {table.name: _on_device(table, gate) for table in chosen}


def run(name, gate, compiled=()):
    table = tables(gate, compiled)[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = table.inputs()
    rows, timers = harness.check_all(table, inputs, functools.partial(_Timer, gate), {}, lambda *_: None)
    for round_ in range(1 if gate.dry_run else ROUNDS):
        for timer in timers if round_ % 2 == 0 else reversed(timers):
            timer.sample()
    return {"title": table.title, "name": name, "candidates": rows, "failures": _failures(rows)}


def _failures(rows):
    """flowkern's own refusals; those of libraries and of compilers are results."""
    ours = {row["ours"] for row in rows}
    return [
        f"{row['name']}: {row['refused']}"
        for row in rows
        if row["name"].removeprefix("triton: ") in ours
        and not row.get("refused", "ModuleNotFoundError").startswith("ModuleNotFoundError")
    ]


def _on_device(table, gate):
    """The table with tensors and modules made on the gate's device, and flowkern on both backends."""
    candidates = itertools.chain.from_iterable(_on_backends(c, gate) for c in table.candidates)
    made = tuple(c._replace(make=_Made(c.make, gate), plain=c.plain and _Made(c.plain, gate)) for c in candidates)
    return table._replace(inputs=_Made(table.inputs, gate), candidates=made)


class _Made:
    """`build`, with what it makes on the gate's device; one object for each build, as harness wants."""

    def __init__(self, build, gate):
        self.build, self.device = build, gate.device

    def __call__(self, *arguments):
        with torch.device(self.device):
            return self.build(*arguments)

    def __eq__(self, other):
        return self.build == other.build

    def __hash__(self):
        return hash(self.build)


def _on_backends(candidate, gate):
    """flowkern's candidates on the backend that it chooses, "cuda" in a dry run, and on Triton."""
    if candidate.name != candidate.ours:
        return [candidate]
    triton = candidate._replace(name=f"triton: {candidate.name}", make=_on("triton", candidate.make, gate))
    if gate.dry_run:
        candidate = candidate._replace(make=_on("cuda", candidate.make, gate))
    return [candidate, triton]


def _on(backend, make, gate):
    def made(inputs):
        call = make(inputs)

        def on_backend(*tensors):
            with gate.on(backend) as chosen, flowkern.backend(chosen):
                return call(*tensors)

        return on_backend

    return made


class _Timer:
    """Takes samples of one candidate, as long as they have not taken SECONDS in all."""

    def __init__(self, gate, call, inputs, row):
        self.watch, self.call, self.row = gate.stopwatch(), lambda: call(*inputs[0]), row
        self.left = SECONDS
        row.update(seconds=[], back_to_back=[])

    def sample(self):
        if self.left > 0:
            times = self.watch.samples(self.call, 0.1, most=5)
            self.row["seconds"].append(statistics.median(times))
            self.row["back_to_back"].append(self.watch.back_to_back(self.call, 0.1, most=50))
            self.left -= sum(times) + self.row["back_to_back"][-1]


def section(title, results):
    measured = [result for result in results.values() if "candidates" in result]
    lines = report.comparison(measured) if measured else []
    for table in measured:
        lines += ["", f"### {table['title']}", "", *_details(table)]
    return title, lines


def _details(table):
    measured = {row["name"]: row for row in table["candidates"] if row.get("seconds")}
    header = ["candidate", "device", "back to back", "÷ flowkern", "÷ limit", "error (allowed)"]
    rows = [
        [
            name,
            *(duration(statistics.median(row[key])) for key in ("seconds", "back_to_back")),
            report.versus(row, measured),
            report.limit_ratio(row, measured),
            f"{row['error']:.0e} ({row['allowed']:.0e})" if "error" in row else "",
        ]
        for name, row in measured.items()
    ]
    return grid(header, rows)


COMPILERS = tuple(ops.COMPILERS)

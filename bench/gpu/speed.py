"""Every op and whole flows on a GPU, against peers, torch.compile and the limit.

The tables are those of the CPU benchmark at sizes for a GPU, checked in the same way (bench/harness.py).
flowkern takes part twice, on its CUDA and on its Triton kernels.
"""

import functools
import itertools
import statistics

import torch

import flowkern
from bench import harness, ops, report
from bench.tables import MODULES
from flowkern import backends
from flowkern.report.table import grid
from flowkern.report.timing import duration

ROUNDS, CALLS = 11, 20


def tables(gate):
    """{name: Table} with the tensors on the gate's device."""
    compiled = () if gate.dry_run else tuple(ops.COMPILERS)
    modules = (module for module in MODULES if hasattr(module, "on_gpu"))
    chosen = (table for module in modules for table in module.tables(**module.on_gpu(gate.dry_run, compiled)))
    return {table.name: _on_device(table, gate) for table in chosen}


def names(gate, results):
    return list(tables(gate))


def stamp(gate):
    return gate.peers()


def run(name, gate):
    table, effort = tables(gate)[name], 1 if gate.dry_run else ROUNDS
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = table.inputs()
    timer = functools.partial(_Timer, gate.stopwatch())
    rows, timers = harness.check_all(table, inputs, timer, {}, print)
    for timer in timers:
        timer.prepare(gate)
    for round_ in range(effort):
        for timer in timers if round_ % 2 == 0 else reversed(timers):
            timer.sample()
    failures = _failures(rows)
    if not gate.dry_run and backends.unavailable("cuda"):
        failures.append(f"flowkern ran without its CUDA kernels: {backends.unavailable('cuda')}")
    return {"title": table.title, "name": name, "candidates": rows, "failures": failures}


def _failures(rows):
    """flowkern's own refusals; those of peers and of compilers are results."""
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
    made = tuple(c._replace(make=_made(c.make, gate), plain=c.plain and _made(c.plain, gate)) for c in candidates)
    return table._replace(inputs=_made(table.inputs, gate), candidates=made)


def _made(build, gate):
    """`build`, with what it makes on the gate's device; one object for each build, as harness wants."""
    return _Made(build, gate.device)


class _Made:
    def __init__(self, build, device):
        self.build, self.device = build, device

    def __call__(self, *arguments):
        with torch.device(self.device):
            return self.build(*arguments)

    def __eq__(self, other):
        return self.build == other.build

    def __hash__(self):
        return hash(self.build)


def _on_backends(candidate, gate):
    """flowkern's candidates on the backend that it chooses, "cuda" for ops that have it, and on Triton."""
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
    """Takes samples of one candidate."""

    def __init__(self, watch, call, inputs, row):
        self.watch, self.call, self.row = watch, lambda: call(*inputs[0]), row
        row.update(seconds=[], back_to_back=[])

    def prepare(self, gate):
        """Five calls: a captured graph is replayed from the third on."""
        for _ in range(1 if gate.dry_run else 5):
            self.call()
        self.calls = 1 if gate.dry_run else CALLS
        if not gate.dry_run:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.call()
            torch.cuda.synchronize()
            self.row["peak_bytes"] = torch.cuda.max_memory_allocated() - before

    def sample(self):
        self.row["seconds"].append(self.watch.seconds(self.call))
        self.row["back_to_back"].append(self.watch.back_to_back(self.call, self.calls))


def section(results):
    """{name: table} as lines of Markdown."""
    measured = [result for result in results.values() if "candidates" in result]
    lines = [
        "Device time of one call with cold L2, medians; how many times longer the others take.", "",
        *report.comparison(measured),
    ]  # fmt: skip
    for table in measured:
        lines += ["", f"### {table['title']}", "", *_details(table)]
    return "Speed", lines


def _details(table):
    measured = {row["name"]: row for row in table["candidates"] if "refused" not in row}
    header = ["candidate", "median", "back to back", "÷ flowkern", "÷ limit", "peak MiB", "error (allowed)"]
    rows = [
        [
            name,
            *(duration(statistics.median(row[key])) for key in ("seconds", "back_to_back")),
            report.versus(row, measured),
            report.limit_ratio(row, measured),
            f"{row['peak_bytes'] / 2**20:.1f}",
            f"{row['error']:.0e} ({row['allowed']:.0e})" if "error" in row else "",
        ]
        for name, row in measured.items()
    ]
    return grid(header, rows)

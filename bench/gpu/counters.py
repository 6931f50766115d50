"""Hardware counters, by Nsight Compute, of the op tables that are furthest from their limit."""

import csv
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bench.gpu import Gpu, speed
from flowkern.report.table import grid

ROOT = Path(__file__).parents[2]
TABLES = 4
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread", "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem", "smsp__inst_executed.sum",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
)  # fmt: skip


def missing(gate):
    return "no GPU" if gate.dry_run else "" if shutil.which("ncu") else "ncu was not found"


def names(gate, results):
    """The tables whose time is the most multiples of the limit's; of one row there is nothing to see."""
    ratios = {
        name: _over_limit(table)
        for name, table in results("speed").items()
        if "candidates" in table and not name.endswith("-1")
    }
    far = sorted((name for name in ratios if ratios[name]), key=ratios.get, reverse=True)[:TABLES]
    return [f"{name}/{backend}" for name in far for backend in ("flowkern", "triton: flowkern")]


def _over_limit(table):
    medians = {row["name"]: statistics.median(row["seconds"]) for row in table["candidates"] if "refused" not in row}
    ours, limit = medians.get("flowkern"), medians.get("limit: copy")
    return ours / limit if ours and limit else None


def run(name, gate):
    line = [
        "ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
        "--metrics", ",".join(METRICS), sys.executable, "-m", "bench.gpu.counters", name,
    ]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, env=gate.environment(), capture_output=True, text=True)
    print(done.stdout, done.stderr)
    kernels = parsed(done.stdout)
    return {"kernels": kernels} if kernels else {"failures": ["ncu saw no kernel; see the log"]}


def parsed(text):
    """[{column: value with its unit}] of ncu's CSV, which follows whatever else was printed."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    header, units, *rows = [*csv.reader(lines[start:]), [], []]
    wanted = {"Kernel Name", "Grid Size", "Block Size", *METRICS}
    return [
        {name: f"{value} {unit}".strip() for name, unit, value in zip(header, units, row) if name in wanted}
        for row in rows
        if row
    ]


def section(results):
    """{name: result} as lines of Markdown."""
    lines = []
    for name, result in results.items():
        for kernel in result.get("kernels", ()):
            lines += [f"### {name}", "", *grid(["counter", "value"], list(kernel.items())), ""]
    return "Hardware counters", lines


def main(name):
    """Profile one call of flowkern in a table, once it is warm."""
    name, _, candidate = name.partition("/")
    table = speed.tables(Gpu())[name]
    inputs = table.inputs()
    call = next(c for c in table.candidates if c.name == candidate).make(inputs)
    for _ in range(3):
        call(*inputs[0])
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call(*inputs[0])
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])

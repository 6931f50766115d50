"""Hardware counters, by Nsight Compute, of recorded calls without Python."""

import csv
import shutil

from flowkern.report.table import grid
from tests.gpu.gate import Item, drivers

KERNELS = ("affine", "spline", "masked inverse", "solve")
SECONDS = 12
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


def items(gate):
    return [Item(name, SECONDS, lambda name=name: run(name, gate)) for name in KERNELS]


def run(name, gate):
    """In a dry run the driver alone."""
    programs, files = drivers.found(gate)
    if not programs:
        return {"failures": [drivers.missing(gate)]}
    if not gate.dry_run and not shutil.which("ncu"):
        return {"failures": ["ncu was not found"]}
    tool = ("ncu", "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS))
    done = drivers.run(programs[""], files["large"], name, before=() if gate.dry_run else tool)
    if gate.dry_run:
        return {"kernels": [], "failures": [f"code {done.returncode}, {done.stderr}"] if done.returncode else []}
    kernels = parsed(done.stdout)
    return (
        {"kernels": kernels} if kernels else {"failures": [f"ncu saw no kernel: {(done.stdout + done.stderr)[-300:]}"]}
    )


def parsed(text):
    """[{column: value with its unit}] of ncu's CSV, which follows whatever else was printed."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    header, units, *rows = [*csv.reader(lines[start:]), [], []]
    wanted = {"Kernel Name", "Grid Size", "Block Size", *METRICS}
    return [
        {name: f"{value} {unit}".strip() for name, unit, value in zip(header, units, row) if name in wanted}
        for row in rows
        if len(row) == len(header)
    ]


def section(results):
    lines = []
    for name, result in results.items():
        for kernel in result.get("kernels", ()):
            lines += [f"### {name}", "", *grid(["counter", "value"], list(kernel.items())), ""]
    return "Hardware counters", lines

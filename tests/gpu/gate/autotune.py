"""Tiles and warps of the Triton kernels: the fastest of a grid about the default, if it is right.

The chosen ones are written to flowkern/ops/launch_parameters.json under the name of this GPU, and are
used from then on. CUDA block sizes are compiled in, and not tuned.
"""

import itertools
import json
from dataclasses import replace
from unittest import mock

import torch

import flowkern
from flowkern.ops import _launch_parameters
from flowkern.report.table import grid
from tests.cases import coupling

FACTORS, WARPS = (1, 0.5, 2, 0.25, 4), (4, 1, 2, 8)
GAIN = 0.97  # of the default's time: less is within what a second look may undo
# (dtype, bins, rows) that an op is tuned at, with 32 features; bins where it has them
TUNED = ((torch.float32, 8, 2**18), (torch.float32, 16, 2**17), (torch.float64, 8, 2**17))


def names(gate, results):
    for op, (dtype, bins, _) in itertools.product(coupling.NAMED, TUNED):
        if bins == 8 or "spline" in op:
            yield f"{op}/{str(dtype).removeprefix('torch.')}/{bins}"


def run(name, gate):
    op, dtype, bins = name.split("/")
    rows = next(r for d, b, r in TUNED if (str(d), b) == (f"torch.{dtype}", int(bins)))
    case = replace(
        coupling.TYPICAL[op], batch=(5 if gate.dry_run else rows,), width=32, features=32,
        select="all", bins=int(bins),
    )  # fmt: skip
    chosen = {}
    with mock.patch.object(_launch_parameters, "tuned", lambda k, _, default: chosen.get(k, default)):
        with gate.on("triton") as backend, flowkern.backend(backend):
            return {"kernels": dict(_tune(case, getattr(torch, dtype), chosen, gate))}


def _tune(case, dtype, chosen, gate):
    """(kernel, what was tried and chosen) of the forward and of the backward kernel."""
    x, params = (t.requires_grad_() for t in case.tensors(dtype, device=gate.device))
    outputs = case(x, params)
    grads = coupling.cotangents(*outputs)

    def forward():
        with torch.no_grad():
            case(x, params)

    def backward():
        torch.autograd.grad(outputs, (x, params), grads, retain_graph=True)

    for call in (forward, backward):
        kernel, default = _kernel_of(call)
        times = _times(call, kernel, default, chosen, gate)
        best = _best(times, kernel, default, chosen, case, dtype, gate)
        yield kernel, {"default": default, "chosen": best, "seconds": {str(c): t for c, t in times.items()}}


def _kernel_of(call):
    """Which kernel asks for launch parameters during the call, and its default."""
    asked = []
    with mock.patch.object(_launch_parameters, "tuned", lambda *a: asked.append(a) or a[2]):
        call()
    ((kernel, _, default),) = asked
    return kernel, default


def _times(call, kernel, default, chosen, gate):
    """{(elements, warps): median seconds} of those that compile and run."""
    watch, times = gate.stopwatch(), {}
    grid = itertools.product(FACTORS[:2] if gate.dry_run else FACTORS, WARPS[:1] if gate.dry_run else WARPS)
    for candidate in (default, *((int(default[0] * factor), warps) for factor, warps in grid)):
        chosen[kernel] = candidate
        if candidate in times or candidate[0] < 1:
            continue
        try:
            times[candidate] = watch.median(call, 1 if gate.dry_run else 15)
        except Exception as error:  # too large for this GPU
            print(f"{kernel} {candidate}: {type(error).__name__}: {error}")
    return times


def _best(times, kernel, default, chosen, case, dtype, gate):
    """The fastest that agrees with the reference at odd sizes; the default unless it gains."""
    for candidate in sorted(times, key=times.get):
        if times[candidate] > GAIN * times[default]:
            break
        chosen[kernel] = candidate
        try:
            for rows, features in ((1, 1), (129, 5), (257, 31)):
                odd = replace(case, batch=(rows,), width=features, features=features)
                coupling.check(odd, "triton", dtype, device=gate.device)
            return candidate
        except AssertionError as error:
            print(f"{kernel} {candidate} is wrong: {error}")
    chosen[kernel] = default
    return default


def after(gate, results):
    """Write what is faster than the default, so that the file says the same as the results."""
    kernels = {}
    for result in results.values():
        kernels |= result.get("kernels", {})
    if kernels:
        path = gate.out / "launch_parameters.json" if gate.dry_run else _launch_parameters.PATH
        table = json.loads(path.read_text()) if path.exists() else {}
        gpu = "dry run" if gate.dry_run else torch.cuda.get_device_name()
        table[gpu] = {k: row["chosen"] for k, row in kernels.items() if row["chosen"] != row["default"]}
        path.write_text(json.dumps(table, indent=1) + "\n")


def section(results):
    """{name: result} as lines of Markdown."""
    rows = [
        [kernel, *map(str, (row["default"], row["chosen"])), _gain(row)]
        for result in results.values()
        for kernel, row in result.get("kernels", {}).items()
    ]
    header = ["Triton kernel", "default (elements, warps)", "chosen", "default ÷ chosen"]
    return "Launch parameters", grid(header, rows)


def _gain(row):
    default, chosen = (row["seconds"][str(tuple(row[name]))] for name in ("default", "chosen"))
    return f"{default / chosen:.2f}"

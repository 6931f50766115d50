"""Tiles and warps of the Triton kernels: the fastest of a grid about the default, if it is right.

The chosen ones are written to launch_parameters.json beside the results, under the name of this GPU; committed as
flowkern/ops/launch_parameters.json, they are used from then on. CUDA block sizes are compiled in, and not tuned.
"""

import itertools
import json
import time
from dataclasses import replace
from unittest import mock

import torch

import flowkern
from flowkern.ops import _launch_parameters
from flowkern.report.table import grid
from tests.cases import coupling
from tests.gpu.gate import Item

FACTORS, WARPS = (1, 0.5, 2, 0.25, 4), (4, 1, 2, 8)
GAIN = 0.97  # of the default's time: less is within what a second look may undo
ROWS = {"affine_coupling": 2**20, "rational_quadratic_spline": 2**18}
SECONDS, SEARCH = 40, 13  # SEARCH: of each direction; then comes the check of the fastest


def items(gate):
    """float32 with 8 bins alone."""
    return [Item(op, SECONDS, lambda op=op: run(op, gate)) for op in coupling.NAMED]


def run(op, gate):
    rows = 5 if gate.dry_run else ROWS[op]
    case = replace(coupling.TYPICAL[op], batch=(rows,), width=32, features=32, select="all")
    chosen = {}
    with mock.patch.object(_launch_parameters, "tuned", lambda k, _, default: chosen.get(k, default)):
        with gate.on("triton") as backend, flowkern.backend(backend):
            kernels = dict(_tune(case, torch.float32, chosen, gate))
    _write(kernels, gate)
    return {"kernels": kernels}


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
        end = time.monotonic() + (float("inf") if gate.dry_run else SEARCH)
        times = _times(call, kernel, default, chosen, gate, end)
        best = _best(times, kernel, default, chosen, case, dtype, gate)
        yield kernel, {"default": default, "chosen": best, "seconds": {str(c): t for c, t in times.items()}}


def _kernel_of(call):
    """Which kernel asks for launch parameters during the call, and its default."""
    asked = []
    with mock.patch.object(_launch_parameters, "tuned", lambda *a: asked.append(a) or a[2]):
        call()
    ((kernel, _, default),) = asked
    return kernel, default


def _times(call, kernel, default, chosen, gate, end):
    """{(elements, warps): median seconds} of those that compile and run."""
    watch, times = gate.stopwatch(), {}
    grid = itertools.product(FACTORS[:2] if gate.dry_run else FACTORS, WARPS[:1] if gate.dry_run else WARPS)
    for candidate in (default, *((int(default[0] * factor), warps) for factor, warps in grid)):
        chosen[kernel] = candidate
        if candidate in times or candidate[0] < 1 or times and time.monotonic() > end:
            continue
        try:
            times[candidate] = watch.median(call, 0.0 if gate.dry_run else 0.1)
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


def _write(kernels, gate):
    """What is faster than the default, in the form of flowkern/ops/launch_parameters.json."""
    path = gate.out / "launch_parameters.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    of_gpu = table.setdefault("dry run" if gate.dry_run else torch.cuda.get_device_name(), {})
    of_gpu |= {k: row["chosen"] for k, row in kernels.items() if row["chosen"] != row["default"]}
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

"""What the machine can do: bytes per second of a copy, floating-point operations of matrix products, launches.

First of all, whether the carried libraries load, and were built from the sources that lie here.
"""

import json
import shutil
import subprocess

import torch

from flowkern import _library, backends
from flowkern.report.table import grid
from flowkern.report.timing import duration
from tests import cases
from tests.gpu.gate import Item
from tests.gpu.gate.gate import ROOT, digest

# name: (dtype, rows and columns of a matrix, precision of float32 products)
MATMULS = {"float32": (torch.float32, 8192, "highest"), "tf32": (torch.float32, 8192, "high")}
STAMP = "stamp.json"


def items(gate):
    return [
        Item("libraries", 1, lambda: _libraries(gate)),
        Item("copy", 1.5, lambda: _copy(gate)),
        *(Item(f"matmul {name}", 1.5, lambda name=name: _matmul(name, gate)) for name in MATMULS),
        Item("launch", 1, lambda: _launch(gate)),
    ]


def _libraries(gate):
    """Whether both are there, and hold a kernel of every op that has one."""
    found = {name: backends.unavailable(name) or "" for name in ("cpu", "cuda", "triton")}
    stamp = ROOT / "build" / "gpu-bundle" / STAMP
    told = json.loads(stamp.read_text()) if stamp.exists() else {}
    failures = [] if gate.dry_run else [f"{name}: {why}" for name, why in found.items() if why]
    if told and told["csrc"] != digest("csrc/**/*.*", "setup.py"):
        failures.append("the carried libraries were built from other sources")
    if not gate.dry_run:
        with_kernels = [op for op in cases.modules("emulated") if "cuda" not in _library.compiled(op)]
        failures += [f"{op}: no CUDA kernel" for op in with_kernels]
    return {"unavailable": found, "stamp": told, "nvidia-smi": _smi(), "failures": failures}


def _smi():
    if not shutil.which("nvidia-smi"):
        return ""
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    line = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    return subprocess.run(line, capture_output=True, text=True, timeout=10).stdout


def _launch(gate):
    tensor = torch.zeros(1, device=gate.device)
    return {"seconds": gate.stopwatch().back_to_back(lambda: tensor.add_(1), 0.2)}


def _matmul(name, gate):
    dtype, size, precision = MATMULS[name]
    size = 64 if gate.dry_run else size
    torch.set_float32_matmul_precision(precision)
    try:
        a, b = (torch.randn(size, size, device=gate.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = gate.stopwatch().median(lambda: torch.matmul(a, b, out=out), 0.5)
    finally:
        torch.set_float32_matmul_precision("highest")
    return {"size": size, "seconds": seconds, "FLOP/s": 2 * size**3 / seconds}


def _copy(gate):
    """Counts bytes read and bytes written."""
    source = torch.randn(2**10 if gate.dry_run else 2**28, device=gate.device)
    target = torch.empty_like(source)
    seconds = gate.stopwatch().median(lambda: target.copy_(source), 0.5)
    moved = 2 * source.nbytes
    return {"bytes": moved, "seconds": seconds, "bytes/s": moved / seconds}


def section(results):
    rows = []
    for name, result in results.items():
        if "bytes/s" in result:
            rows.append([name, f"{result['bytes/s'] / 1e9:.0f} GB/s"])
        elif "FLOP/s" in result:
            rows.append([f"{name}, {result['size']}²", f"{result['FLOP/s'] / 1e12:.1f} TFLOP/s"])
        elif "seconds" in result:
            rows.append([name, duration(result["seconds"])])
    return "Limits", grid(["limit", "measured"], rows)

"""What the GPU can do: bytes per second of a copy, floating-point operations of matrix products."""

import torch

from flowkern.report.table import grid
from flowkern.report.timing import duration

# name: (dtype, rows and columns of a matrix, precision of float32 products)
MATMULS = {
    "float32": (torch.float32, 8192, "highest"),
    "tf32": (torch.float32, 8192, "high"),
    "bfloat16": (torch.bfloat16, 8192, "highest"),
    "float16": (torch.float16, 8192, "highest"),
    "float64": (torch.float64, 4096, "highest"),
}


def names(gate, results):
    return ["copy", "launch", *(f"matmul {name}" for name in MATMULS)]


def run(name, gate):
    watch, samples = gate.stopwatch(), 1 if gate.dry_run else 20
    if name == "copy":
        return _copy(watch, gate, samples)
    if name == "launch":
        tensor = torch.zeros(1, device=gate.device)
        return {"seconds": watch.back_to_back(lambda: tensor.add_(1), 10 if gate.dry_run else 1000)}
    dtype, size, precision = MATMULS[name.removeprefix("matmul ")]
    size = 64 if gate.dry_run else size
    torch.set_float32_matmul_precision(precision)
    a, b = (torch.randn(size, size, device=gate.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = watch.median(lambda: torch.matmul(a, b, out=out), samples)
    return {"size": size, "seconds": seconds, "FLOP/s": 2 * size**3 / seconds}


def _copy(watch, gate, samples):
    """Counts bytes read and bytes written."""
    source = torch.randn(2**10 if gate.dry_run else 2**28, device=gate.device)
    target = torch.empty_like(source)
    seconds = watch.median(lambda: target.copy_(source), samples)
    moved = 2 * source.nbytes
    return {"bytes": moved, "seconds": seconds, "bytes/s": moved / seconds}


def section(results):
    """{name: result} as lines of Markdown."""
    rows = []
    for name, result in results.items():
        if "bytes/s" in result:
            rows.append([name, f"{result['bytes/s'] / 1e9:.0f} GB/s"])
        elif "FLOP/s" in result:
            rows.append([f"{name}, {result['size']}²", f"{result['FLOP/s'] / 1e12:.1f} TFLOP/s"])
        elif "seconds" in result:
            rows.append([name, duration(result["seconds"])])
    return "Limits", grid(["limit", "measured"], rows)

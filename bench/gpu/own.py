"""Times of flowkern's kernels alone, on both backends, with what they move and compute at least.

Affine couplings and splines have 2^20 rows of 64 features, splines 8 bins. The masked layer has 64 features and two
hidden layers of 256; the field of the solve 8 features and two of 64, in 16 steps of rk4.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

import flowkern
from bench.tables import neural_ode
from flowkern.ops import AffineElement, Degrees, MaskedLayer, affine_coupling, masked_autoregressive
from flowkern.ops import rational_quadratic_spline as spline
from flowkern.report.table import grid
from flowkern.report.timing import duration

ROWS, FEATURES, BINS, BOUND = 2**20, 64, 8, 3.0
SAMPLES = (1024, 16384, 65536)
HIDDEN = (256, 256)
SOLVE_FLOPS = 2 * (2 * neural_ode.FEATURES * neural_ode.HIDDEN + 2 * neural_ode.HIDDEN**2) * 4 * neural_ode.STEPS
SECONDS = {"cuda": 0.5, "triton": 1.4}  # the smoke test has compiled what Triton needs, save other layouts


class Work(NamedTuple):
    """`make(gate)` returns a call. bytes, flops: of a call, at least."""

    op: str
    name: str
    make: Callable
    bytes: float
    flops: float
    predicted: str = ""  # of csrc/<op>/predictions.json


def items(gate):
    """CUDA first."""
    return [
        gate.item(f"{backend}/{work.op}/{work.name}", SECONDS[backend], lambda b=backend, w=work: run(b, w, gate))
        for backend in gate.backends
        for work in works(gate.dry_run)
    ]


def works(few=False):
    """few: of the sizes of one kernel the first."""
    for layout in ("chunked", "interleaved"):
        for direction, per_element, flops in (("forward", 16, 4), ("inverse", 16, 4), ("backward", 24, 8)):
            yield _elementwise("affine_coupling", direction, layout, per_element, flops, f"{direction}, exp, {layout}")
    for tails, count in (("identity", 3 * BINS - 1), ("circular", 3 * BINS)):
        for direction, passes, flops in (("forward", 1, 110), ("inverse", 1, 120), ("backward", 2, 250)):
            moved = 8 + 4 * count + (passes - 1) * (4 + 4 * count)
            predicted = f"{direction}, {BINS} bins, {tails}"
            yield _elementwise("rational_quadratic_spline", direction, tails, moved, flops, predicted)
    for rows in SAMPLES[: 1 if few else None]:
        for direction in ("forward", "inverse"):
            yield _masked(direction, rows)
    for rows in SAMPLES[: 1 if few else None]:
        for name, factor in (("exact", 1), ("hutchinson", 1), ("backward", 4)):
            yield _solve(name, rows, factor)


def run(backend, work, gate):
    call = work.make(gate)
    watch = gate.stopwatch()
    with gate.on(backend) as chosen, flowkern.backend(chosen):
        times = watch.samples(call, 0.0 if gate.dry_run else 0.3)
    seconds = statistics.median(times)
    return {
        "op": work.op, "name": work.name, "backend": backend, "seconds": seconds, "samples": times,
        "bytes": work.bytes, "flops": work.flops, "predicted": work.predicted,
        "bytes/s": work.bytes / seconds, "FLOP/s": work.flops / seconds,
    }  # fmt: skip


def _elementwise(op, direction, kind, moved, flops, predicted):
    elements = ROWS * FEATURES

    def make(gate):
        return _coupling(op, direction, kind, 5 if gate.dry_run else ROWS, gate.device)

    return Work(op, f"{direction}, {kind}", make, moved * elements + 4 * ROWS, flops * elements, predicted)


def _coupling(op, direction, kind, rows, device):
    count = 2 if op == "affine_coupling" else 3 * BINS - (kind == "identity")
    x, grad_y = torch.randn(2, rows, FEATURES, device=device).unbind()
    params = torch.randn(rows, FEATURES * count, device=device)
    params = params.unflatten(-1, (2, FEATURES)).mT if kind == "chunked" else params.unflatten(-1, (FEATURES, count))
    function, options = (affine_coupling, {}) if count == 2 else (spline, {"bound": BOUND, "tails": kind})

    def call():
        return function(x, params, inverse=direction == "inverse", **options)

    if direction != "backward":
        return torch.no_grad()(call)
    x, params = x.requires_grad_(), params.requires_grad_()
    return _backward(call, (x, params), (grad_y, torch.randn(rows, device=device)))


def _backward(call, inputs, grads):
    """The backward of a call alone, whose forward runs the first time."""
    outputs = []

    def backward():
        if not outputs:
            outputs.extend(call())
        return torch.autograd.grad(outputs, inputs, grads, retain_graph=True)

    return backward


def _masked(direction, rows):
    sizes = (FEATURES, *HIDDEN, 2 * FEATURES)
    kept = sum(a * b for a, b in zip(sizes, sizes[1:])) / 2  # half of each weight, nearly

    def make(gate):
        n, features, hidden = (3, 5, (16,)) if gate.dry_run else (rows, FEATURES, HIDDEN)
        return _masked_call(direction, n, features, hidden, gate.device)

    moved, predicted = 8 * FEATURES * rows + 8 * kept, f"{direction}, affine: products"
    return Work("masked_autoregressive", f"{direction}, N={rows}", make, moved, 2 * kept * rows, predicted)


def _masked_call(direction, rows, features, hidden, device):
    generator = torch.Generator().manual_seed(0)
    sizes = (features, *hidden, 2 * features)
    weights = [torch.randn(b, a, generator=generator) / a**0.5 for a, b in zip(sizes, sizes[1:])]
    layers = [
        MaskedLayer(weight.to(device), torch.zeros(len(weight), device=device), activation)
        for weight, activation in zip(weights, (*["relu"] * len(hidden), "identity"))
    ]
    degrees = Degrees(range(features), [[i % (features - 1) for i in range(h)] for h in hidden])
    x, element = torch.randn(rows, features, device=device), AffineElement("exp")

    @torch.no_grad()
    def call():
        return masked_autoregressive(x, layers, degrees, element, inverse=direction == "inverse")

    return call


def _solve(name, rows, factor):
    flops = factor * SOLVE_FLOPS * rows * (3 if name == "hutchinson" else 2) / 2
    predicted = f"{'backward' if name == 'backward' else 'forward'}: products"

    def make(gate):
        return _solve_call(name, *((3, 1) if gate.dry_run else (rows, neural_ode.STEPS)), gate.device)

    return Work("neural_ode", f"{name}, N={rows}", make, 8 * neural_ode.FEATURES * rows, flops, predicted)


def _solve_call(name, rows, steps, device):
    with torch.device(device):
        weights, (y, noise, grad) = neural_ode.parameters(torch.float32), torch.randn(3, rows, neural_ode.FEATURES)

    def call():
        return neural_ode._fused(y, noise.sign() if name == "hutchinson" else None, *weights, steps=steps)

    if name != "backward":
        return torch.no_grad()(call)
    inputs = (y.requires_grad_(), *(w.requires_grad_() for w in weights))
    return _backward(call, inputs, (grad, torch.randn(rows, device=device)))


def section(results):
    rows = [
        [
            name,
            duration(result["seconds"]),
            f"{result['bytes/s'] / 1e9:.0f} GB/s",
            f"{result['FLOP/s'] / 1e12:.2f} TFLOP/s",
        ]
        for name, result in results.items()
        if "seconds" in result
    ]
    return "Own kernels", grid(["kernel", "median", "moves", "computes"], rows)

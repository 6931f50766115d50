"""flowkern beside eager libraries and by hand, and what a call of one row costs, also in a CUDA graph."""

import torch

import flowkern
from bench.gpu import own, tables
from bench.libraries import FEATURES, SAMPLE, build
from flowkern.report.table import grid
from flowkern.report.timing import duration

LARGE, FLOW = 2**20, 2048
WANTED = (
    ("affine_coupling-forward", LARGE),
    ("rational_quadratic_spline-forward", 2**18),
    ("rational_quadratic_spline-forward+backward", 2**18),
    ("masked_autoregressive-inverse", FLOW),
    ("neural_ode-exact-forward", 1024),
    ("neural_ode-hutchinson-forward", 1024),
    ("nsf-log_prob", FLOW),
    ("nsf-training-step", FLOW),
    ("realnvp-sampling", 1),
    ("maf-sampling", FLOW),
    ("affine_coupling-inverse", LARGE),
    ("rational_quadratic_spline-inverse", 2**18),
)
SECONDS, GRAPH_SECONDS = 3.5, 1.5
ONE_ROW = ("affine_coupling", "rational_quadratic_spline", "realnvp", "nsf")


def items(gate):
    wanted = WANTED[::4] if gate.dry_run else WANTED
    graphs = [gate.item(f"one row/{name}", GRAPH_SECONDS, lambda name=name: one_row(name, gate)) for name in ONE_ROW]
    return [*graphs[:2], *tables.items(wanted, SECONDS, gate), *graphs[2:]]


def one_row(name, gate):
    """Seconds per call one after the other, as it is and replayed from a graph."""
    watch = gate.stopwatch()
    call = _call(name, gate)
    with torch.no_grad():
        found = {"seconds": watch.back_to_back(call, 0.0 if gate.dry_run else 0.2)}
        if not gate.dry_run:
            found["graph"] = watch.back_to_back(captured(call).replay, 0.2)
    return found


def captured(call):
    """The CUDA graph of a call that has run before: what it loads and makes the first time cannot be captured."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _call(name, gate):
    """An op, or the sampling of a flow, of one row."""
    if name not in FEATURES:
        kind = "chunked" if name == "affine_coupling" else "identity"
        return own._coupling(name, "forward", kind, 1, gate.device)
    with torch.device(gate.device):
        flow, noise = build("flowkern.flows", name), torch.randn(1, FEATURES[name])
    if not gate.dry_run:
        return lambda: SAMPLE["flowkern.flows"](flow, noise)

    def on_reference():
        with flowkern.backend("reference"):
            return SAMPLE["flowkern.flows"](flow, noise)

    return on_reference


def section(results):
    rows = [
        [name, duration(result["seconds"]), duration(result["graph"]) if "graph" in result else ""]
        for name, result in results.items()
        if "candidates" not in result and "seconds" in result
    ]
    title, lines = tables.section("Libraries", results)
    return title, [*grid(["one row", "call after call", "graph"], rows), "", *lines]

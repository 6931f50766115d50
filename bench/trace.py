"""Times the calls that a run with FLOWKERN_TRACE=folder made, on tensors of the same shapes, strides and dtypes.

Integers and settings have the traced numbers, the others random ones. Where the call had gradients, forward and
backward are timed together. The CPU kernels, or on a GPU those of CUDA and Triton, are measured beside the reference,
each checked against float64 as every candidate of the benchmark (harness.py).
"""

import importlib
import json
import math
import pkgutil
from collections import Counter
from functools import partial

import torch

import flowkern
from bench import environment, harness, records, report
from flowkern import backends
from flowkern.ops._function import Rule

_CANDIDATES = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


def replay(folder, quick):
    """Measure every call of the traces in `folder`, save `replay.csv` there, return the report."""
    calls = _calls(folder)
    tables = [_table(i, call) for i, call in enumerate(calls)]
    measured = [_measured(table, harness.effort(quick)) for table in tables]
    rows = records.rows({"environment": environment.describe(quick), "tables": measured})
    for row, dtype in zip(rows, _dtypes(calls, measured)):
        row["dtype"] = dtype
    path = folder / "replay.csv"
    path.unlink(missing_ok=True)
    records.write(path, rows)
    return "\n".join([*_shares(calls, measured), "", report.markdown(rows)])


def _measured(table, effort):
    """The table; a refusal, as of a backend without a kernel for the op, ends the first attempt."""
    found = harness.measure(table, effort, {}, lambda name: None)
    return harness.measure(table, effort, dict(found), lambda name: None) if isinstance(found, tuple) else found


def _calls(folder):
    """How often each different call was made, in all processes together."""
    calls = Counter()
    for path in sorted(folder.glob("trace-*.jsonl")):
        for line in path.read_text().splitlines():
            call = json.loads(line)
            count = call.pop("calls")
            calls[json.dumps(call)] += count
    if not calls:
        raise SystemExit(f"{folder}: it holds no trace; run your program with FLOWKERN_TRACE={folder}")
    return calls


def _dtypes(calls, measured):
    for line, table in zip(calls, measured):
        yield from [json.loads(line)["tensors"][0]["dtype"]] * len(table["candidates"])


def _shares(calls, measured):
    """The measured calls, those first that took most of the run."""
    medians = [records.percentiles(table["candidates"][0].get("seconds", [math.nan]))[1] for table in measured]
    totals = [count * median for count, median in zip(calls.values(), medians)]
    order = sorted(range(len(totals)), key=lambda i: -totals[i])
    lines = ["| calls | of which one takes | in all | call |", "|---:|---:|---:|---|"]
    for i in order:
        count = list(calls.values())[i]
        lines.append(f"| {count} | {1e6 * medians[i]:.3g} µs | {1e3 * totals[i]:.3g} ms | {measured[i]['title']} |")
    return lines


def _table(number, line):
    call = json.loads(line)
    rule, device = _rules()[call["op"]], call["tensors"][0]["device"]
    options, gradient = _made(call["options"]), _differentiates(rule, call)
    run = partial(_run, rule, call, options, gradient)
    truth = "reference" if call["method"] == "apply" else _CANDIDATES[device][0]  # the reference has no other method
    plain = partial(_plain, run, truth)
    names = [name for name in _CANDIDATES[device] if name == "reference" or backends.unavailable(name) is None]
    candidates = [harness.Candidate(name, partial(_call, run, name), plain, names[0]) for name in names]
    work = "forward+backward" if gradient else "forward"
    title = f"{call['op']}, {work}, {_shape(call['tensors'])}{_direction(options)}"
    return harness.Table(f"trace-{number}", title, partial(_inputs, call), tuple(candidates))


def _shape(tensors):
    """The rows, and the shapes of the first tensors."""
    shapes = ["×".join(map(str, t["shape"])) or "()" for t in tensors if t]
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    rows = tensors[0]["shape"][0] if tensors[0]["shape"] else 1
    return f"N={rows}, tensors {' '.join(shapes[:4])}{more}"


def _direction(options):
    """What of the options a title says."""
    spec = next((o for o in (options, *options) if hasattr(o, "inverse")), None)
    inverse = spec.inverse if spec else next((o for o in options if isinstance(o, bool)), False)
    return ", inverse" if inverse else ""


def _differentiates(rule, call):
    return bool(rule.differentiable) and any(t and t["gradient"] for t in call["tensors"])


def _rules():
    """The rule of each op, by name."""
    found = {}
    for module in pkgutil.iter_modules(flowkern.ops.__path__):
        if module.ispkg:
            function = importlib.import_module(f"flowkern.ops.{module.name}.function")
            found |= {value.name: value for value in vars(function).values() if isinstance(value, Rule)}
    return found


def _made(value):
    """The options as the call had them; only classes of flowkern's ops are made."""
    if isinstance(value, list):
        return tuple(map(_made, value))
    if not isinstance(value, dict):
        return value
    ((name, arguments),) = value.items()
    module, _, kind = name.rpartition(".")
    if not module.startswith("flowkern.ops._"):
        raise ValueError(f"the trace names {name}, which is no class of flowkern's ops")
    return getattr(importlib.import_module(module), kind)(*map(_made, arguments))


def _inputs(call):
    """Tensors of the call; what is None or has the traced numbers is not among the inputs."""
    return [[_tensor(t, first=i == 0) for i, t in enumerate(call["tensors"]) if _is_drawn(t)]]


def _is_drawn(described):
    return described is not None and "values" not in described


def _tensor(described, first):
    """Features are normal; vectors, among which are times, uniform; others scaled as weights are."""
    shape, stride, dtype = described["shape"], described["stride"], getattr(torch, described["dtype"])
    size = 1 + sum((n - 1) * s for n, s in zip(shape, stride)) if 0 not in shape else 0
    memory = torch.rand(size) if len(shape) < 2 else torch.randn(size)
    memory = memory if first or len(shape) < 2 else memory / math.sqrt(max(1, shape[-1]))
    tensor = memory.to(described["device"], dtype).as_strided(shape, stride)
    return tensor.requires_grad_(described["gradient"])


def _run(rule, call, options, gradient, backend, *drawn):
    """The outputs and, where wanted, the gradients of their sum."""
    precision, drawn = drawn[0].dtype, iter(drawn)
    tensors = [next(drawn) if _is_drawn(described) else _given(described, precision) for described in call["tensors"]]
    with torch.set_grad_enabled(gradient):
        outputs = getattr(rule, call["method"])(backend, options, *tensors)[: rule.differentiable or 1]
    if not gradient:
        return outputs
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    grads = torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs], allow_unused=True)
    return *outputs, [g for g in grads if g is not None]


def _given(described, precision):
    """A tensor with the traced numbers, or None."""
    if described is None:
        return None
    dtype = getattr(torch, described["dtype"])
    dtype = precision if dtype.is_floating_point else dtype
    return torch.tensor(described["values"], dtype=dtype, device=described["device"])


def _call(run, backend, inputs):
    return partial(run, backend)


def _plain(run, backend, dtype):
    return lambda *tensors: run(backend, *(t.to(dtype) for t in tensors))

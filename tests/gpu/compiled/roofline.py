"""How fast a CUDA kernel should run on an H200, counted from its machine code. Nothing here was measured.

    python -m tests.gpu.compiled.roofline                   a table for each op
    python -m tests.gpu.compiled.roofline neural_ode write  that of one, and keeps it

An op's `predictions.json` names paths through its kernels (fast_path in sass.py says how one is found) and keeps
what was counted along them. Of each path: `kernel`; `trips`, how often each of its loops runs; `elements` that a
thread has finished by then; `bytes` of main memory that an element costs; `ahead`, how many copies (cp.async) go on
while a block computes. Of a product of matrices, which has no `trips`, only the innermost loop is counted; its
elements are its FFMA instructions.

The model: blocks are customers of four servers, the schedulers, the units of special functions, shared memory and
L1, and main memory. What they ask of each, and how long a block takes alone, with nobody to wait for, is counted;
mean value analysis (Reiser & Lavenberg 1980) gives how many pass per cycle. A copy that goes on while its block
computes is a customer of its own, for which the time of a block alone is prolonged as if it waited for it.
"""

import json
import sys
from typing import NamedTuple

from tests.gpu.compiled import cuda_kernels, sass

MULTIPROCESSORS, CLOCK, COPY = 132, 1.9e9, 4.3e12  # of an H200: Hz, and bytes/s that a copy reaches
MEMORY = COPY / MULTIPROCESSORS / CLOCK  # bytes per cycle and multiprocessor
SCHEDULERS, SHARED = 4, 128  # instructions of a warp, bytes per cycle
ISSUE = 0.8  # of the schedulers' cycles, at best: replays, branches and conflicts of registers take the rest
SPECIAL = 16  # threads per cycle
WARPS = 64  # that a multiprocessor holds
# Cycles from an instruction to its result, where the code itself does not tell.
LATENCY = {
    "LDG": 650,
    "LDGSTS": 650,
    "LD": 35,
    "LDS": 30,
    "MUFU": 25,
    "SHFL": 25,
    "BAR": 30,
    "I2F": 25,
    "F2I": 25,
    "F2F": 40,
}
CACHED = 35  # a load that hits the L1 cache, as those of a product's weights do
SPECIAL_FUNCTIONS = "MUFU", "I2F", "F2I", "F2F", "FRND"


class Prediction(NamedTuple):
    instructions: float  # of a thread, for each element; so are the next two
    special: float  # special functions and conversions
    shared: float  # bytes to and from shared memory, and the L1 cache
    alone: int  # cycles that a block takes for its elements with the multiprocessor to itself
    ahead: int  # copies that are under way while a block computes
    occupancy: float
    in_flight: int  # bytes per multiprocessor that are on their way from memory, at most
    share: float  # of what the memory, or FFMA, would allow
    limit: str


def alone(path, cached=False):
    """Cycles that one warp takes: it waits as the code's control fields say, and for nobody."""
    time, ready, copied = 0, [0] * 8, 0
    for i in path:
        stall, writes, reads, waits = (
            i.control >> shift & mask for shift, mask in ((41, 15), (46, 7), (49, 7), (52, 63))
        )
        time = max([time, *(ready[b] for b in range(6) if waits >> b & 1)])
        name = i.opcode.split(".")[0]
        latency = CACHED if cached and name == "LDG" else LATENCY.get(name, 25)
        if writes < 6:
            ready[writes] = max(ready[writes], time + latency)
        if reads < 6:
            ready[reads] = max(ready[reads], time + 15)
        if name == "LDGSTS":
            copied = time + latency
        if name == "DEPBAR":
            time = max(time, copied)
        if name == "BAR":
            time += LATENCY["BAR"]
        time += max(stall, 1)
    return time


def throughput(customers, demands, alone):
    """Customers served per cycle, by mean value analysis; alone: the time of one that never waits for another."""
    queues = [0.0] * len(demands)
    rate = 0.0
    for n in range(1, customers + 1):
        times = [demand * (1 + queue) for demand, queue in zip(demands, queues)]
        rate = n / (max(alone - sum(demands), 0) + sum(times))
        queues = [rate * time for time in times]
    return rate


def predicted(code, path, resources):
    """The Prediction of a kernel's code; resources: those of tests.gpu.compiled.resources."""
    product = "trips" not in path
    run = sass.product(code) if product else sass.fast_path(sass.Graph(code), path["trips"])
    elements = path.get("elements") or sum(i.is_("FFMA") for i in run)
    special = sum(i.is_(*SPECIAL_FUNCTIONS) for i in run)
    within = ("LDS", "STS", "LD", "ST", "LDG") if product else ("LDS", "STS", "LDGSTS")
    shared = sum(i.bytes() for i in run if i.is_(*within))
    warps = resources.threads / 32
    demands = {
        "instructions": warps * len(run) / SCHEDULERS / ISSUE,
        "special functions": warps * special * 32 / SPECIAL,
        "shared memory": warps * shared * 32 / SHARED,
        "main memory": resources.threads * elements * path.get("bytes", 0) / MEMORY,
    }
    least = warps * elements / SCHEDULERS if product else demands["main memory"]
    blocks = max(round(resources.occupancy * WARPS / warps), 1)
    ahead = path.get("ahead", 0)
    time = alone(run, cached=product) + ahead * LATENCY["LDGSTS"] * sum(i.is_("DEPBAR") for i in run)
    rate = throughput(blocks * (1 + ahead), [*demands.values()], time)
    slowest = max(demands, key=demands.get)
    waiting = rate * demands[slowest] < 0.8  # the busiest server idles a fifth of its time
    loaded = sum(i.bytes() for i in run if i.is_("LDG", "LDGSTS"))
    return Prediction(
        round(len(run) / elements, 1), round(special / elements, 1), round(shared / elements, 1), round(time), ahead,
        resources.occupancy, _in_flight(run, loaded) * resources.threads * blocks, round(rate * least, 2),
        "latency" if waiting else slowest,
    )  # fmt: skip


def _in_flight(run, loaded):
    """The most bytes that a thread has asked for before it uses, or waits for, any of them."""
    most = asked = 0
    pending = set()
    for i in run:
        waits, writes = i.control >> 52 & 63, i.control >> 46 & 7
        if any(waits >> b & 1 for b in pending) or i.is_("DEPBAR"):
            asked, pending = 0, set()
        if i.is_("LDG", "LDGSTS"):
            asked += i.bytes()
            pending |= {writes} - {7} if i.is_("LDG") else set()
            most = max(most, asked)
    return most


def kept(folder):
    """{name: {"path": …, field of Prediction: …}} of an op's kernels."""
    file = folder / "predictions.json"
    return json.loads(file.read_text()) if file.exists() else {}


def counted(op, table):
    """{name: Prediction} of an op's paths; table: {kernel: Resources} for sm_90a."""
    paths = {name: entry["path"] for name, entry in kept(cuda_kernels.SOURCES[op].parent).items()}
    codes = cuda_kernels.codes(op, {path["kernel"] for path in paths.values()})
    return {name: predicted(codes[path["kernel"]], path, table[path["kernel"]]) for name, path in paths.items()}


def fallen(before, now):
    """Of which predictions the share is more than 5 points below what is kept."""
    return [
        f"{name}: {prediction.share:.0%} of the bound is predicted, {before[name].get('share', 1):.0%} is kept"
        for name, prediction in now.items()
        if prediction.share < before[name].get("share", 1) - 0.05
    ]


def rows(predictions):
    """Lines of text, one for each path."""
    yield "  " + f"{'path':<40}" + "".join(f"{name:>14}" for name in Prediction._fields[:-1]) + "  limit"
    for name, prediction in predictions.items():
        yield f"  {name:<40}" + "".join(f"{value:>14}" for value in prediction[:-1]) + f"  {prediction.limit}"


def write(folder, predictions):
    """Keeps them beside the kernels."""
    entries = {name: {"path": entry["path"], **predictions[name]._asdict()} for name, entry in kept(folder).items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    (folder / "predictions.json").write_text(f"{{\n{lines}\n}}\n")


def main(words):
    ops = [op for op in cuda_kernels.SOURCES if op in words] or [*cuda_kernels.SOURCES]
    for op in ops:
        for folder, _, table in cuda_kernels.tables(["90a"], [op]):
            predictions = counted(op, table)
            if "write" in words:
                write(folder, predictions)
            print(op, *rows(predictions), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

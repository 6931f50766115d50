"""Every op on every backend against the float64 reference, on fresh random inputs.

Each allocation is filled with NaN first, so that an element that is not written is noticed, and each
call is made twice, which must give the same bits. Of each check, error ÷ allowed is kept.
"""

import contextlib
import itertools
import random
import time

import torch

from tests import cases, tolerances
from tests.gpu.gate import Item
from tests.gpu.gate.gate import BACKENDS

MODULES = cases.modules("gate")
# op: the backends that have kernels of it, and the groups of checks
OPS = {op: (BACKENDS, tuple(module.GROUPS)) for op, module in MODULES.items()}
SLICES = 4  # of a group on Triton, whose kernels take seconds to compile
SECONDS = {"cuda": 15, "triton": 24}
LARGE = 130  # of all calls with more than 2^31 elements: two at once might not fit


def items(gate):
    """The longest first, then CUDA."""
    small = [
        _item(f"{backend}/{op}/{group}/{part}", SECONDS[backend], gate)
        for backend in BACKENDS
        for op, (_, groups) in OPS.items()
        for group, part in itertools.product(groups, range(1 if backend == "cuda" or gate.dry_run else SLICES))
        if group != "large"
    ]
    return [Item("large", LARGE, lambda: run_large(gate)), *small]


def _item(name, seconds, gate):
    return Item(name, seconds, lambda: run(name, gate, seconds))


def run_large(gate):
    """One after the other, by one process."""
    each = LARGE / (len(OPS) * len(BACKENDS))
    found = [run(f"{backend}/{op}/large/0", gate, each) for backend in BACKENDS for op in OPS]
    sums = {key: sum(result[key] for result in found) for key in ("checks", "of")}
    return sums | {key: [v for result in found for v in result[key]] for key in ("error/allowed", "failures")}


def run(name, gate, seconds=float("inf"), part="correctness"):
    """The checks of a group's slice, as many as end in time."""
    backend, op, group, slice_ = name.split("/")
    slices = 1 if backend == "cuda" or group == "large" or gate.dry_run else SLICES
    checks = list(MODULES[op].GROUPS[group](gate))[int(slice_) :: slices]
    return run_checks(checks, backend, gate, name, seconds, part)


def run_checks(checks, backend, gate, name, seconds, part):
    """What was wrong, and the largest error ÷ allowed of each check."""
    seed, failures, ratios = random.SystemRandom().randrange(2**31), [], []
    end = time.monotonic() + (float("inf") if gate.dry_run else seconds)
    with gate.on(backend) as chosen, _poisoned():
        for number, check in enumerate(checks):
            if time.monotonic() > end:
                break
            with tolerances.recorded() as found:
                try:
                    check(chosen, seed + number)
                except Exception as error:  # a kernel that does not compile or fit, too
                    failures.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
            ratios.append(max(found, default=0.0))
            gate.tell(part, name, {"number": number, "error/allowed": round(ratios[-1], 4)})
            if failures and not gate.usable():
                break
    return {"checks": len(ratios), "of": len(checks), "seed": seed, "error/allowed": ratios, "failures": failures}


@contextlib.contextmanager
def _poisoned():
    """Inside, new memory holds NaN (integers: the largest)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def section(results):
    rows = [
        f"| {name} | {result['checks']} of {result['of']} | {max(result['error/allowed'], default=0):.2f} | "
        f"{len(result['failures'])} |"
        for name, result in results.items()
        if "error/allowed" in result
    ]
    header = ["| checks | run | largest error ÷ allowed | wrong |", "| --- | --- | --- | --- |"]
    return "Correctness", [*header, *rows]

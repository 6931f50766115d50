"""Other ways to compile the kernels, beside the library's own in the same rounds, without Python: VARIANTS.

A variant is measured once, and then is the library's own or deleted.
"""

import statistics

from flowkern.report.table import grid
from flowkern.report.timing import duration
from tests.gpu.gate import Item, drivers, problems

VARIANTS: dict[str, tuple[str, ...]] = {}  # {name: options of the compiler}
ROUNDS, SECONDS, TIME = 2, 5, 0.1  # TIME: of calls of a problem in a round


def items(gate):
    """All variants take turns in one item for each kind of kernel."""
    count = max(1, len(drivers.found(gate)[0]))
    return [
        Item(name, min(SECONDS, 1.2 * ROUNDS * count), lambda name=name: run(name, gate)) for name in problems.LARGE
    ]


def run(name, gate):
    programs, files = drivers.found(gate)
    if not programs:
        return {"failures": [drivers.missing(gate)]}
    found, failures = {variant: [] for variant in programs}, []
    for _ in range(1 if gate.dry_run else ROUNDS):
        for variant, program in programs.items():
            done = drivers.run(program, files["large"], name, "--time", str(TIME))
            failures += [f"{variant}: code {done.returncode}, {done.stderr.strip()}"] if done.returncode else []
            found[variant] += drivers.timed(done.stdout).get(name, [])
    return {"seconds of variants": found, "failures": failures}


def section(results):
    rows = [
        [name, variant or "as built", duration(statistics.median(seconds))]
        for name, result in results.items()
        for variant, seconds in result.get("seconds of variants", {}).items()
        if seconds
    ]
    return "Variants", grid(["kernel", "variant", "median, without Python"], rows)

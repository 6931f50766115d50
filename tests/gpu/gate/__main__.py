"""Run the parts of the gate in order; what has run before, with the same sources, is not run again.

    python -m tests.gpu.gate                        all parts, on the GPU that torch sees first
    python -m tests.gpu.gate --minutes 9            as much as ends in time; run it again for the rest
    python -m tests.gpu.gate --only correctness     one part or several
    python -m tests.gpu.gate --wheels DIR           take nflows, zuko and normflows from wheels
    python -m tests.gpu.gate --dry-run              the same code without a GPU, with tiny sizes

The results are gate.json and gate.md in build/gpu_gate (or --out), written after every item; those of
a dry run, which measures nothing, are dry-run.json and dry-run.md. The part "autotune" also writes a file of the
package, flowkern/ops/launch_parameters.json: the Triton tiles that were the fastest on this GPU.
"""

import argparse
import math
import signal
import sys
import time
from pathlib import Path

import torch

from tests.gpu.gate import PARTS, module, process, report, wheels
from tests.gpu.gate.gate import ROOT, Gate
from tests.gpu.gate.store import Store


def main():
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the item's process ends too
    gate = Gate(options.out.resolve(), options.dry_run)
    gate.out.mkdir(parents=True, exist_ok=True)
    missing = wheels.install(options.wheels, gate.out / "site")
    store = Store(gate.out / f"{gate.title}.json", gate.about())
    store.data["about"] |= {"peers": gate.peers(), "wheels": missing}
    deadline = time.monotonic() + 60 * options.minutes
    complete = all([_run_part(name, gate, store, deadline) for name in options.only or PARTS])
    print(report.write(store))
    if not complete:
        print("The time was up: run it again for the rest.")
    sys.exit(0 if complete and not report.failures(store) else 1)


def _options():
    parser = argparse.ArgumentParser("python -m tests.gpu.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_gate")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="run these parts")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end in this time")
    parser.add_argument("--wheels", type=Path, help="a folder with wheels of the peer libraries")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: nothing is measured")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no GPU; --dry-run runs the same code without one")
    if options.wheels and not options.wheels.is_dir():
        parser.error(f"--wheels: no such folder: {options.wheels}")
    return options


def _run_part(name, gate, store, deadline):
    """Run the items that are not done; whether time was left for all of them."""
    part = module(name)
    missing, stamp, after = (getattr(part, f, lambda *_: "") for f in ("missing", "stamp", "after"))
    store.missing(name, missing(gate))
    if missing(gate):
        return True
    after(gate, store.results(name))
    try:
        items = part.names(gate, store.results)
    except Exception as error:  # the other parts run all the same
        store.add(name, "list of items", "", {"failures": [f"{type(error).__name__}: {error}"]})
        return True
    for item in items:
        if store.done(name, item, stamp(gate)):
            continue
        print(f"{name}: {item}", file=sys.stderr)
        result = process.run(name, item, gate, deadline - time.monotonic())
        if result is None:
            return False
        store.add(name, item, stamp(gate), result)
        after(gate, store.results(name))
        report.write(store)
    return True


if __name__ == "__main__":
    main()

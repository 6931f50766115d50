"""Everything that needs a GPU, in ten minutes: see tests/gpu/gate/__init__.py for its parts.

    python -m tests.gpu.gate                      on the GPU that torch sees first
    python -m tests.gpu.gate --only own counters  some parts
    python -m tests.gpu.gate --dry-run            the same without a GPU: tiny sizes, a made-up clock

Every line is appended to results.jsonl in OUT (--out, else $OUT, else build/gpu_gate) as it comes, and the page
report.html is written anew every few seconds. What dies or hangs is ended, and the rest goes on.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.gpu.gate import PARTS, report
from tests.gpu.gate.log import Log
from tests.gpu.gate.supervise import command, scratch, supervise

ROOT = Path(__file__).parents[3]
SPARE = 6  # seconds that a process has beyond its last part's end
REPORT_EVERY = 5


def main():
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the gate's processes end too
    out, start = options.out.resolve(), options.begun
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "results.jsonl")
    if log.path.exists():
        log.path.rename(log.path.with_suffix(".old"))
    parts = options.only or [part.name for part in PARTS]
    end = start + (3600 if options.dry_run else max(p.end for p in PARTS if p.name in parts) + SPARE)
    shutil.rmtree(scratch(out), ignore_errors=True)
    main = command(out, start, parts, True, options.dry_run)
    in_time = supervise([main], out, end, _environment(options.dry_run), session=True, each=_Reports(log))
    report.write(log)
    print(report.text(log))
    sys.exit(0 if in_time and not log.failures() else 1)


class _Reports:
    """Writes the report every few seconds."""

    def __init__(self, log):
        self.log, self.next = log, time.time() + REPORT_EVERY

    def __call__(self):
        if time.time() > self.next:
            report.write(self.log)
            self.next = time.time() + REPORT_EVERY


def _environment(dry_run):
    return os.environ | ({"TRITON_INTERPRET": "1"} if dry_run else {})


def _options():
    parser = argparse.ArgumentParser("python -m tests.gpu.gate", description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT") or ROOT / "build" / "gpu_gate")
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="run these parts")
    parser.add_argument("--begun", type=float, default=time.time(), help="the time of day from which all is reckoned")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: nothing is measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()

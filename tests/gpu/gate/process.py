"""An item in a process of its own: `python -m tests.gpu.gate.process PART ITEM RESULT OUT [--dry-run]`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu.gate import module
from tests.gpu.gate.gate import ROOT, Gate

SECONDS = 420  # an item that takes longer hangs


def run(part, item, gate, left):
    """The result of an item, a failure that says what happened, or None if `left` seconds are too few."""
    log = gate.out / "logs" / (re.sub(r"[^\w.+-]+", "-", f"{part}-{item}") + ".log")
    log.parent.mkdir(exist_ok=True)
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    start = time.monotonic()
    code = _wait(command(part, item, result, gate), gate, log, min(left, SECONDS))
    if code is None and left < SECONDS:
        return None
    if code == 0 and result.exists():
        return json.loads(result.read_text()) | {"took": round(time.monotonic() - start, 1)}
    what = f"ended after {SECONDS} s" if code is None else f"ended with code {code}"
    return {"failures": [f"{what}: {_last_line(log)} (logs/{log.name})"]}


def command(part, item, result, gate):
    """The command line of an item's process."""
    line = [sys.executable, "-m", "tests.gpu.gate.process", part, item, str(result), str(gate.out)]
    return line + ["--dry-run"] * gate.dry_run


def _wait(line, gate, log, seconds):
    """The exit code, or None if the process had to be ended after `seconds`."""
    with log.open("w") as file:
        process = subprocess.Popen(
            line, cwd=ROOT, env=gate.environment(), stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _last_line(log):
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def main(part, item, result, out, *dry_run):
    found = module(part).run(item, Gate(Path(out), bool(dry_run)))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

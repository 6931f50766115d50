"""compute-sanitizer over the small cases of each op: memory, races, uninitialised reads, barriers."""

import json
import os
import re
import shutil
import subprocess

from tests.gpu.gate import process
from tests.gpu.gate.correctness import OPS
from tests.gpu.gate.gate import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_ERRORS = re.compile(r"SUMMARY: (\d+) (?:error|hazard)")


def missing(gate):
    return "no GPU" if gate.dry_run else "" if shutil.which("compute-sanitizer") else "compute-sanitizer was not found"


def names(gate, results):
    return [f"{tool}/{backend}/{op}" for tool in TOOLS for op, (backends, _) in OPS.items() for backend in backends]


def run(name, gate):
    tool, backend, op = name.split("/")
    target = gate.out / "logs" / "sanitized.json"
    target.unlink(missing_ok=True)
    line = ["compute-sanitizer", "--tool", tool, *process.command("correctness", f"{backend}/{op}/few", target, gate)]
    # Every allocation on its own, so that reading beyond one is noticed.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return _judged(done.stdout + done.stderr, target)


def _judged(text, target):
    """What the tool says, and whether the cases under it ran and were right."""
    errors = _ERRORS.search(text)
    failures = [] if errors else ["the tool printed no summary; see the log"]
    if errors and int(errors[1]):
        failures = [line for line in text.splitlines() if line.startswith("=========")][:12]
    if not target.exists():
        return {"failures": [*failures, "the cases did not run to their end"]}
    ran = json.loads(target.read_text())
    return {"checks": ran["checks"], "failures": failures + ran["failures"]}

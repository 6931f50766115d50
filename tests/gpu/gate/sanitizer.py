"""compute-sanitizer over recorded calls of every kernel, without Python: memory, races, barriers."""

import re
import shutil

from tests.gpu.gate import Item, drivers

SECONDS = {"memcheck": 15, "racecheck": 25, "synccheck": 15}
_ERRORS = re.compile(r"SUMMARY: (\d+) (?:error|hazard)")


def items(gate):
    return [Item(tool, seconds, lambda tool=tool, s=seconds: run(tool, s, gate)) for tool, seconds in SECONDS.items()]


def run(tool, seconds, gate):
    """In a dry run the driver alone: the emulation checks as it runs."""
    programs, files = drivers.found(gate)
    if not programs:
        return {"failures": [drivers.missing(gate)]}
    if not gate.dry_run and not shutil.which("compute-sanitizer"):
        return {"failures": ["compute-sanitizer was not found"]}
    before = () if gate.dry_run else ("compute-sanitizer", "--tool", tool)
    done = drivers.run(programs[""], files["small"], before=before, seconds=600 if gate.dry_run else seconds + 5)
    calls = len(drivers.timed(done.stdout))
    if gate.dry_run:
        return {"calls": calls, "failures": [f"code {done.returncode}, {done.stderr}"] if done.returncode else []}
    return {"calls": calls, "failures": judged(done.stdout + done.stderr, calls)}


def judged(text, calls):
    """What the tool says, and whether anything ran under it."""
    errors = _ERRORS.search(text)
    failures = [] if errors else ["the tool printed no summary"]
    if errors and int(errors[1]):
        failures = [line for line in text.splitlines() if line.startswith("=========")][:12]
    return failures if calls else [*failures, "no call ran to its end"]

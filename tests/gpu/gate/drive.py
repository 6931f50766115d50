"""The process that runs parts of the gate: python -m tests.gpu.gate.drive OUT START PARTS ALONE [--dry-run].

START is the time of day at which the gate began, PARTS are joined by commas. ALONE is True in the one process that
runs all of them, and begins others where a part is shared: each takes the next item that none has taken. It ends with
the code AGAIN when the GPU can no longer be used from it: another process goes on with the rest.
"""

import os
import sys
import time
import traceback
from pathlib import Path

from tests.gpu.gate import PARTS, Item, module
from tests.gpu.gate.log import Log, process_name
from tests.gpu.gate.supervise import command, scratch, supervise

AGAIN = 75
SLOW = 3  # an item hangs that takes so many times what is expected, and GRACE seconds
GRACE = 20
STARTUP = 8  # seconds until a process has imported torch and found its GPU


class Clock:
    """Seconds since the gate began."""

    def __init__(self, start):
        self.start = start

    def now(self):
        return time.time() - self.start

    def took(self, seconds):
        pass


class MadeUpClock:
    """On which items take what is expected of a GPU."""

    def __init__(self, now):
        self.time = now

    def now(self):
        return self.time

    def took(self, seconds):
        self.time += seconds


def run_part(part, items, gate, log, clock):
    """Run those that no process has taken, as far as they end in time."""
    for number, item in enumerate(items):
        if not taken(gate.out, part, number):
            run_item(part, item, gate, log, clock)


def taken(out, part, number):
    """Whether another process has taken the item; from now on it is."""
    folder = scratch(out)
    folder.mkdir(exist_ok=True)
    try:
        os.close(os.open(folder / f"{part.name}-{number}", os.O_CREAT | os.O_EXCL))
        return False
    except FileExistsError:
        return True


def run_item(part, item, gate, log, clock):
    now = clock.now()
    if now + item.seconds > part.end:
        log.add(part=part.name, item=item.name, ended=now, result={"skipped": "no time was left"})
        return
    limit = time.time() + GRACE + (600 if gate.dry_run else SLOW * item.seconds)
    log.add(part=part.name, item=item.name, process=process_name(), began=round(now, 2), limit=limit)
    result = attempt(item)
    clock.took(item.seconds * processes(part, gate) / part.processes)
    times = {"ended": round(clock.now(), 2), "took": round(clock.now() - now, 2)}
    log.add(part=part.name, item=item.name, process=process_name(), **times, result=result)
    if result.get("failures") and not gate.usable():
        sys.exit(AGAIN)


def processes(part, gate):
    """How many share the part."""
    return min(part.processes, 2) if gate.dry_run else part.processes


def attempt(item):
    """Its result; whatever goes wrong in it is one."""
    try:
        return item.run()
    except Exception as error:
        print(f"{item.name}: {traceback.format_exc()}", file=sys.stderr)
        return {"failures": [f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]]}


def items_of(part, gate, log, now):
    """The part's items; none, and a failure, where the list cannot be made."""
    found = []
    result = attempt(Item("list of items", 0, lambda: found.extend(module(part).items(gate)) or {}))
    if result:
        log.add(part=part.name, item="list of items", ended=now, result=result)
    return found


def shared(part, gate, start, clock):
    """Run a part by processes of its own."""
    commands = processes(part, gate) * [command(gate.out, start, [part.name], False, gate.dry_run)]
    supervise(commands, gate.out, time.time() + (3600 if gate.dry_run else part.end - clock.now() + 2))


def main(out, start, parts, alone, *dry_run):
    from tests.gpu.gate.gate import Gate

    log = Log(Path(out) / "results.jsonl")
    gate = Gate(Path(out), bool(dry_run), log)
    alone = alone == "True"
    if alone and not log.about():
        log.add(about=gate.about())
    for part in (p for p in PARTS if p.name in parts.split(",")):
        clock = MadeUpClock(log.ended() + (0 if alone else STARTUP)) if dry_run else Clock(float(start))
        if part.processes > 1 and alone:
            shared(part, gate, start, clock)
        else:
            with gate.of(part.name):
                run_part(part, items_of(part, gate, log, clock.now()), gate, log, clock)


if __name__ == "__main__":
    main(*sys.argv[1:])

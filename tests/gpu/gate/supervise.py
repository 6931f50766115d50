"""Runs processes of the gate, and others in their place where one dies or hangs: nothing here imports torch."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.gate.log import Log

MOST = 40  # processes that may take the place of one
EVERY = 0.5  # seconds


class Running:
    """One command, which is begun again until it ends with the code 0."""

    def __init__(self, command, log, environment, session):
        self.command, self.log, self.environment, self.session = command, log, environment, session
        self.left = MOST
        self.begin()

    def begin(self):
        self.process = subprocess.Popen(
            self.command, env=self.environment, start_new_session=self.session, stdout=subprocess.DEVNULL
        )

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL) if self.session else self.process.kill()
            self.process.wait()

    def done(self):
        """Whether it has ended; what it was at when it died or hung is a failure."""
        item = self.log.running(str(self.process.pid))
        hangs = item is not None and time.time() > item["limit"]
        if self.process.poll() is None and not hangs:
            return False
        self.kill()
        code = self.process.returncode
        if item is not None:
            what = "hung" if hangs else f"ended its process with the code {code}"
            self.log.add(part=item["part"], item=item["item"], ended=item["began"], result={"failures": [what]})
        if code == 0:
            return True
        self.left -= 1
        if self.left == 0 or item is None and code != 75:
            self.log.add(
                part="gate", item=f"process {self.process.pid}", ended=0, result={"failures": [f"code {code}"]}
            )
            return True
        self.begin()
        return False


def supervise(commands, out, end, environment=None, session=False, each=lambda: None):
    """Run them at once until all have ended or time.time() is `end`; each() is called every half second."""
    log = Log(out / "results.jsonl")
    running = [Running(command, log, environment, session) for command in commands]
    left = list(running)
    try:
        while left and time.time() < end:
            left = [one for one in left if not one.done()]
            each()
            time.sleep(EVERY if left else 0)
    finally:
        for one in running:
            one.kill()
    return not left


def scratch(out):
    """A folder for what is not a result: of those, few files come back from a machine that is lent."""
    return Path(tempfile.gettempdir()) / f"flowkern-gate-{hashlib.sha256(str(out).encode()).hexdigest()[:12]}"


def command(out, start, parts, alone, dry_run):
    """The command line of a process of the gate (drive.py)."""
    line = [sys.executable, "-m", "tests.gpu.gate.drive", out, start, ",".join(parts), alone]
    return [*map(str, line), *["--dry-run"] * dry_run]

"""What the gate has found: one file, to which every process appends lines of JSON as they come.

{"part", "item", "process", "began", "limit"}    an item begins, at that second; it hangs if it takes longer
{"part", "item", "check": …}                     part of its result
{"part", "item", "ended", "result": {…}}         its result
"""

import json
import os
from pathlib import Path
from typing import NamedTuple


class Log(NamedTuple):
    path: Path

    def add(self, **line):
        """Whole lines: those of several processes do not mix."""
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def lines(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def results(self):
        """{part: {item: its result}} of what has ended."""
        found = {}
        for line in self.lines():
            if "result" in line:
                found.setdefault(line["part"], {})[line["item"]] = line["result"]
        return found

    def about(self):
        """What the results depend on."""
        return next((line["about"] for line in self.lines() if "about" in line), {})

    def ended(self):
        """The second at which the last item ended."""
        return max((line["ended"] for line in self.lines() if "ended" in line), default=0.0)

    def running(self, process):
        """The line with which the item began that the process has not ended, or None."""
        lines = [line for line in self.lines() if line.get("process") == process]
        return lines[-1] if lines and "began" in lines[-1] else None

    def failures(self):
        """(part, item, what) of everything that went wrong."""
        return [
            (part, item, what)
            for part, items in self.results().items()
            for item, result in items.items()
            for what in result.get("failures", ())
        ]


def process_name():
    return str(os.getpid())

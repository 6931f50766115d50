"""Plants faults in a copy of the kernels and tells what catches each.

`python -m tests.gpu.sanitizers.planted [word …]` prints a table, of all faults or of those that a word occurs
in, and fails if one is not caught; `… planted write` also puts it into docs/emulation.md. All are planted at
once, and a number that is set when the kernels run chooses one: nothing is built, nor imported, once for each.
The number 0 chooses none: then all cases pass.
"""

import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests import cases, times
from tests.gpu.emulation import build as emulation
from tests.gpu.sanitizers import build, mutations, run

RUNS = {"checked": "emulated", "address": "cpu", "thread": "cpu", "triton": "triton"}  # see run.py
FAULT = build.HERE / "fault.cpp"
SECONDS = 300  # that the cases of one fault may take
DOCS, HEADER = emulation.ROOT / "docs" / "emulation.md", "| kernel | fault | caught by |\n|---|---|---|\n"
# What a process writes that has found its fault, and what the table has of that.
CAUSES = {
    "address sanitizer: ": r"AddressSanitizer: (?!CHECK)(\S+)",
    "thread sanitizer: ": r"ThreadSanitizer: (data race|\S+)",
    "undefined behaviour: ": r"runtime error: (.*)",
    "": r"RuntimeError: kernel .*?, thread \([\d, ]+\):? (.*)",
    "out of bounds: ": r"IndexError: \w+ (.* that no tensor .*)",
    "race: ": r"IndexError: \w+ (.* no barrier .*)",
    "reference, inverse: ": r"AssertionError: .*inverse=True: ([\w ]+ is wrong)",
    "reference: ": r"AssertionError: (?:.*: )?([\w ]+ is wrong)",
}


@functools.cache
def faults():
    """{number: Mutation} of the ops in turn and of what they share. Loads flowkern, with the library of the context."""
    of_ops = (fault for op in cases.modules("faults").values() for fault in op.FAULTS)
    return dict(enumerate((*of_ops, *mutations.COMMON), 1))


def plant(folder):
    """A copy of the sources with all faults in them."""
    for name in ("csrc", "flowkern"):
        shutil.copytree(emulation.ROOT / name, folder / name)
    (folder / "tests").symlink_to(emulation.ROOT / "tests")
    (folder / "flowkern" / "planted.py").write_text("fault = 0\n")
    for number, mutation in faults().items():
        file = folder / mutation.file
        text = file.read_text()
        assert text.count(mutation.old) == 1, f"{mutation.fault}: not one place in {mutation.file}"
        assert "FAULT" in mutation.new, f"{mutation.fault}: nothing chooses it"
        if mutation.kind == "triton":
            declared, name = "from flowkern import planted\n", "planted.fault"
        else:
            declared, name = "extern const int flowkern_fault;\n", "flowkern_fault"
        text = text.replace(mutation.old, re.sub(r"\bFAULT\b", f"({name} == {number})", mutation.new))
        file.write_text(text if text.startswith(declared) else declared + text)


def library(kind, csrc):
    """Of the kernels with the faults in them."""
    if kind == "triton":
        return ""
    if kind == "checked":
        return emulation.built(emulation.CHECKED, (*emulation.kernels(csrc), FAULT), csrc)
    return build.library(kind, build.runnable()[-1], csrc, (FAULT,))


def chooser(kind, library):
    """A function that chooses the fault of that number in this process."""
    if kind == "triton":
        from flowkern import planted

        return lambda number: setattr(planted, "fault", number)
    variable = ctypes.c_int.in_dll(ctypes.CDLL(library), "flowkern_fault")
    return lambda number: setattr(variable, "value", number)


def caught(kind, library, numbers):
    """(mutation, what the run said of it or None); each in a process of its own, two at a time."""
    with run.context(RUNS[kind], library):
        every, choose = run.named(RUNS[kind]), chooser(kind, library)

        def check(number, cases):
            choose(number)
            for name in cases:
                run.check(every[name], RUNS[kind])

        check(0, dict.fromkeys(name for number in numbers for name in faults()[number].cases))
        started = [_started(check, number) for number in numbers[:1]]
        for number, following in zip(numbers, [*numbers[1:], None]):
            started += [_started(check, following)] if following else []
            yield faults()[number], _said(*started.pop(0))


def _started(check, number):
    """The id of a process that looks for a fault, and the file that it writes to."""
    output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (the caller reads it)
    process = os.fork()
    if process:
        return process, output
    os.dup2(output.fileno(), sys.stderr.fileno())
    signal.alarm(SECONDS)
    try:
        check(number, faults()[number].cases)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _said(process, output):
    """What the process said of its fault; None where it found nothing in the time that it has."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with output:
        output.seek(0)
        return cause_of(output.read()) if status not in (0, -signal.SIGALRM) else None


def cause_of(text):
    """What a process wrote, in the words that do not differ from run to run."""
    for kind, pattern in CAUSES.items():
        found = re.search(pattern, text)
        if found:
            return kind + re.sub(r" \(\S+:\d+\)", "", found[1])  # without the places in the source
    return text[-300:]


def row(mutation, cause):
    """A line of the table; Markdown takes what stands in angle brackets for HTML."""
    op = Path(mutation.file).parent.name.replace("_", " ").strip()
    cause = (cause or "NOT CAUGHT").replace("<", "&lt;")
    return f"| {'common' if op == 'ops' else op} | {mutation.fault} | {cause} |"


def look(kind, library, *numbers):
    """Print the table's lines of these faults; whether one was missed."""
    missed = 0
    for mutation, cause in caught(kind, library, [*map(int, numbers)]):
        missed += cause is None
        print(row(mutation, cause), flush=True)
    return missed > 0


def main(*words):
    """Print the table, which the word "write" also puts into the docs; whether a fault was missed."""
    missed, rows = False, []
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder))
        for kind in RUNS:
            numbers = [n for n, m in faults().items() if m.kind == kind and _chosen(m, words)]
            if numbers and (kind != "thread" or build.thread_sanitizer_starts()):
                with times.part(f"built with faults: {kind}"):
                    path = library(kind, Path(folder, "csrc"))
                with times.part(f"{len(numbers)} faults looked for: {kind}"):
                    missed |= _looked(kind, path, numbers, folder, rows)
    if words == ("write",):
        DOCS.write_text("".join([*DOCS.read_text().partition(HEADER)[:2], *rows]))
    return missed


def _chosen(mutation, words):
    return words in ((), ("write",)) or any(word in str(mutation) for word in words)


def _looked(kind, library, numbers, folder, rows):
    """Whether a fault was missed by `look`, in a process of its own, whose lines are added to rows."""
    script = "import sys; from tests.gpu.sanitizers import planted; sys.exit(planted.look(*sys.argv[1:]))"
    arguments = "-c", script, kind, str(library), *map(str, numbers)
    command = build.command(kind, *arguments) if kind in build.FLAGS else [sys.executable, *arguments]
    variables, place = ({"TRITON_INTERPRET": "1"}, folder) if kind == "triton" else ({}, None)
    environment = build.environment(**variables)
    with subprocess.Popen(command, env=environment, cwd=place, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            rows.append(line)
    return process.returncode != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

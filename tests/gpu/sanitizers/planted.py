"""Plants faults in a copy of the kernels and tells what catches each.

`python -m tests.gpu.sanitizers.planted [word …]` prints a table, of all faults or of those that a word occurs
in, and fails if one is not caught; `… planted write` also puts it into docs/emulation.md. All are planted at
once, and a number that is set when the kernels run chooses one: nothing is built, nor imported, once for each.
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
        assert "FAULT" in mutation.new, f"{mutation.fault}: nothing chooses it"
        places = found(mutation.old, text)
        assert len(places) == 1, f"{mutation.fault}: not one place in {mutation.file}"
        if mutation.kind == "triton":
            declared, name = "from flowkern import planted\n", "planted.fault"
        else:
            declared, name = "extern const int flowkern_fault;\n", "flowkern_fault"
        (begin, end), new = places[0], re.sub(r"\bFAULT\b", f"({name} == {number})", mutation.new.strip())
        text = text[:begin] + new + text[end:]
        file.write_text(text if text.startswith(declared) else declared + text)


def found(code, text):
    """[(begin, end)] of the places where the code is in the text, with whatever white space."""
    at = [i for i, character in enumerate(text) if not character.isspace()]
    code, text = ("".join(some.split()) for some in (code, text))
    return [(at[i], at[i + len(code) - 1] + 1) for i in range(len(text)) if text.startswith(code, i)]


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


def caught(kind, library, numbers, whole):
    """(number, what its run said or None), of each number's run in a process of its own, two at a time.

    The number 0 chooses no fault. Then the cases of all these faults are run, or all that there are (whole).
    """
    with run.context(RUNS[kind], library):
        every, choose = run.named(RUNS[kind]), chooser(kind, library)
        cases = {number: faults()[number].cases for number in numbers}
        cases[0] = every if whole else dict.fromkeys(name for some in cases.values() for name in some)

        def check(number):
            choose(number)
            for name in cases[number]:
                run.check(every[name], RUNS[kind])

        left, started, said = [0, *numbers], {}, {}
        for number in (0, *numbers):
            while number not in said:
                while left and len(started) < 2:
                    process, output = _started(check, left[0])
                    started[process] = left.pop(0), output
                process, status = os.wait()
                which, output = started.pop(process)
                said[which] = _said(os.waitstatus_to_exitcode(status), output, cause_of if which else str)
            yield number, said[number]


def _started(check, number):
    """The id of a process that looks for a fault, and the file that it writes to."""
    output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (the caller reads it)
    process = os.fork()
    if process:
        return process, output
    os.dup2(output.fileno(), sys.stderr.fileno())
    signal.alarm(SECONDS if number else 0)
    try:
        check(number)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _said(status, output, shortened):
    """What the process said of its fault; None where it found nothing in the time that it has."""
    with output:
        output.seek(0)
        return shortened(output.read()) if status not in (0, -signal.SIGALRM) else None


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


def look(kind, library, whole, *numbers):
    """Print the table's lines of these faults; whether one was missed, or something found where there is none."""
    missed = 0
    for number, cause in caught(kind, library, [*map(int, numbers)], whole == "True"):
        if number:
            print(row(faults()[number], cause), flush=True)
        elif cause:
            print(f"Without a fault: {cause}", flush=True)
        missed += (cause is None) == (number > 0)
    return missed > 0


def planned(folder, words=()):
    """(kind, library, numbers) of the faults that are looked for, each built when its turn comes."""
    plant(Path(folder))
    for kind in RUNS:
        numbers = [n for n, m in faults().items() if m.kind == kind and _chosen(m, words)]
        if numbers and (kind != "thread" or build.thread_sanitizer_starts()):
            with times.part(f"built with faults: {kind}"):
                path = library(kind, Path(folder, "csrc"))
            yield kind, path, numbers


def _chosen(mutation, words):
    return words in ((), ("write",)) or any(word in str(mutation) for word in words)


def looked(folder, kind, library, numbers, whole=False):
    """Whether all is as it should be, and the lines printed, by `look` in a process of its own."""
    script = "import sys; from tests.gpu.sanitizers import planted; sys.exit(planted.look(*sys.argv[1:]))"
    arguments = "-c", script, kind, str(library), str(whole), *map(str, numbers)
    command = build.command(kind, *arguments) if kind in build.FLAGS else [sys.executable, *arguments]
    variables, place = ({"TRITON_INTERPRET": "1"}, folder) if kind == "triton" else ({}, None)
    environment = build.environment(**variables)
    with times.part(f"{len(numbers)} faults looked for: {kind}"):
        done = subprocess.run(command, env=environment, cwd=place, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    return done.returncode == 0, done.stdout


def main(*words):
    """Print the table, which the word "write" also puts into the docs; whether a fault was missed."""
    with tempfile.TemporaryDirectory() as folder:
        found = [looked(folder, *one) for one in planned(folder, words)]
    if words == ("write",):
        DOCS.write_text("".join([*DOCS.read_text().partition(HEADER)[:2], *(lines for _, lines in found)]))
    return not all(right for right, _ in found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Cases drawn at random from the options of all ops, see tests/options.py.

`python -m tests.gpu.sanitizers.sample (emulated|cpu|triton) LIBRARY SEED SECONDS [NUMBER]` runs them for so many
seconds, or with a number that case alone, and prints a line before each. Case n of a seed is always the same.
"""

import random
import secrets
import subprocess
import sys
import time

from tests import times
from tests.gpu.sanitizers import build, run

SECONDS = 100


def drawn(kind, seed, number):
    """(what it is, the `Call`, the seed of its tensors) of one case."""
    from tests import options
    from tests.cases.space import text

    rng = random.Random(f"{seed} {number}")
    op = rng.choice(run.ops(kind))
    choice, of_tensors = options.drawn(options.SPACES[op], rng), rng.randrange(2**31)
    return f"{number}: {op}, {text(choice)}", options.call(options.SPACES[op], choice), of_tensors


def main(kind, library, seed, seconds, *numbers):
    end, number = time.monotonic() + float(seconds), 0
    with run.context(kind, library):
        while numbers or time.monotonic() < end:
            text, call, of_tensors = drawn(kind, seed, int(numbers[0]) if numbers else number)
            print(text, flush=True)
            call.check("triton" if kind == "triton" else "cpu", of_tensors)
            number += 1
            if numbers:
                return


def passes(library, seconds=SECONDS):
    """Whether cases of a new seed pass under the address sanitizer, on a library of CPU kernels for it."""
    arguments = "tests.gpu.sanitizers.sample", "cpu", str(library), str(secrets.randbits(32)), str(seconds)
    command = build.command("address", "-m", *arguments)
    with times.part("run under the address sanitizer: cases drawn at random"):
        done = subprocess.run(command, env=build.environment(), capture_output=True, text=True)
    lines = done.stdout.splitlines()
    print(f"{len(lines)} cases drawn with seed {arguments[3]}", flush=True)
    if done.returncode:
        again = " ".join((*arguments, lines[-1].partition(":")[0])) if lines else ""
        print(f"{lines[-1:]}\n{done.stderr}\nAgain, under the sanitizer: python -m {again}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main(*sys.argv[1:])

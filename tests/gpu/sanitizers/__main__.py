"""`make sanitize`: every case under every sanitizer, and the planted faults."""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from tests import times
from tests.gpu.emulation import build as emulation
from tests.gpu.sanitizers import build, planted, sample


def runs():
    """(name, sanitizer, kind of library, the library), each built when its turn comes.

    The best instruction set is not among them: its library has the planted faults, of which none is chosen at first.
    """
    with times.part("built for the address sanitizer: CUDA emulated"):
        library = emulation.built(emulation.ADDRESS)
    yield "CUDA emulated", "address", "emulated", library
    for sanitizer in build.FLAGS:
        if sanitizer == "thread" and not build.thread_sanitizer_starts():
            print("The thread sanitizer does not start on this machine: nothing is said of CPU threads.")
            return
        for isa in build.runnable()[:-1]:
            with times.part(f"built for the {sanitizer} sanitizer: CPU {isa}"):
                library = build.library(sanitizer, isa)
            yield f"CPU {isa}", sanitizer, "cpu", library


def passes(name, sanitizer, kind, library):
    command = build.command(sanitizer, "-m", "tests.gpu.sanitizers.run", kind, library)
    with times.part(f"run under the {sanitizer} sanitizer: {name}"):
        done = subprocess.run(command, env=build.environment(), capture_output=True, text=True)
    print(done.stdout.strip() if done.returncode == 0 else done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def finds(folder, kind, library, numbers):
    """Whether faults are found, and without one all cases pass that no library of `runs` has shown to."""
    return planted.looked(folder, kind, library, numbers, whole=kind in build.FLAGS)[0]


def main():
    """What is built runs beside what is being built, two at a time."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        started = [pool.submit(passes, *one) for one in runs()]
        for kind, library, numbers in planted.planned(folder):
            started.append(pool.submit(finds, folder, kind, library, numbers))
            if kind == "address":
                started.append(pool.submit(sample.passes, library))
        return not all([one.result() for one in started])


if __name__ == "__main__":
    sys.exit(main())

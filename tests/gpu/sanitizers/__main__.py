"""`make sanitize`: every case under every sanitizer, then the planted faults."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests import times
from tests.gpu.emulation import build as emulation
from tests.gpu.sanitizers import build, planted, sample


def runs():
    """(name, sanitizer, kind of library, the library), each built when its turn comes."""
    with times.part("built for the address sanitizer: CUDA emulated"):
        library = emulation.built(emulation.ADDRESS)
    yield "CUDA emulated", "address", "emulated", library
    for sanitizer in build.FLAGS:
        if sanitizer == "thread" and not build.thread_sanitizer_starts():
            print("The thread sanitizer does not start on this machine: nothing is said of CPU threads.")
            return
        for isa in build.runnable():
            with times.part(f"built for the {sanitizer} sanitizer: CPU {isa}"):
                library = build.library(sanitizer, isa)
            yield f"CPU {isa}", sanitizer, "cpu", library


def passes(name, sanitizer, kind, library):
    command = build.command(sanitizer, "-m", "tests.gpu.sanitizers.run", kind, library)
    with times.part(f"run under the {sanitizer} sanitizer: {name}"):
        done = subprocess.run(command, env=build.environment(), capture_output=True, text=True)
    print(done.stdout.strip() if done.returncode == 0 else done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def main():
    with ThreadPoolExecutor(2) as pool:
        clean = all([*pool.map(lambda run: passes(*run), runs())])
    with times.part("run under the address sanitizer: cases drawn at random"):
        clean &= sample.passes(build.library("address", build.runnable()[-1]))
    return 1 if planted.main() or not clean else 0


if __name__ == "__main__":
    sys.exit(main())

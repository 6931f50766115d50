"""`make sanitize`: every case under every sanitizer, then the planted faults."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.emulation import build as emulation
from tests.sanitizers import build, mutations, triton_mutations


def runs():
    """(name, sanitizer, kind of library, the library, instruction set)"""
    yield "CUDA emulated", "address", "emulated", emulation.built(emulation.ADDRESS)
    for sanitizer in build.FLAGS:
        if sanitizer == "thread" and not build.thread_sanitizer_starts():
            print("The thread sanitizer does not start on this machine: nothing is said of CPU threads.")
            return
        for isa in build.runnable():
            yield f"CPU {isa}", sanitizer, "cpu", build.library(sanitizer, isa)


def passes(name, sanitizer, kind, library):
    start = time.perf_counter()
    command = build.command(sanitizer, "-m", "tests.sanitizers.run", kind, library)
    done = subprocess.run(command, env=build.environment(), capture_output=True, text=True)
    said = done.stdout.strip() if done.returncode == 0 else done.stdout + done.stderr
    print(f"{name}, {sanitizer}: {said}, {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode == 0


def main():
    with ThreadPoolExecutor(2) as pool:
        clean = all([*pool.map(lambda run: passes(*run), runs())])
    missed = mutations.main() + triton_mutations.main()
    return 0 if clean and missed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

"""`make sanitize`: every case under every sanitizer, then the planted faults. About six minutes."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.emulation import build as emulation
from tests.sanitizers import build, mutations


def runs():
    """(name, sanitizer, kind of library, the library, instruction set)"""
    yield "CUDA emulated", "address", "kernels", emulation.built(emulation.ADDRESS), ""
    library = build.address_library()
    for isa in build.runnable():
        yield f"CPU {isa}", "address", "torch", library, isa
    if not build.thread_sanitizer_starts():
        print("The thread sanitizer does not start on this machine: nothing is said of CPU threads.")
        return
    for isa in build.runnable():
        yield f"CPU {isa}", "thread", "kernels", build.loops_library(build.THREAD, isa), isa


def passes(name, sanitizer, kind, library, isa):
    start = time.perf_counter()
    command = build.command(sanitizer, "-m", "tests.sanitizers.run", kind, library)
    environment = build.environment(FLOWKERN_CPU=isa)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = done.stdout.strip() if done.returncode == 0 else done.stdout + done.stderr
    print(f"{name}, {sanitizer}: {said}, {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode == 0


def main():
    with ThreadPoolExecutor(2) as pool:
        clean = all([*pool.map(lambda run: passes(*run), runs())])
    return 0 if mutations.main() == 0 and clean else 1


if __name__ == "__main__":
    sys.exit(main())

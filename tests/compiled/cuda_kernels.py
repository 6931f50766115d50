"""Compile the CUDA kernels to machine code, without a GPU, and tell what resources each one uses.

`python -m tests.compiled.cuda_kernels` prints a table: registers, shared memory and stack, and what
was spilled, that is, moved out of registers for want of them.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
ARCHITECTURES = ("80", "90a")
FLAGS = ("-cubin", "-std=c++20", "-O3", "-DFLOWKERN_ISA=cuda", "-Xptxas=-v")
_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?, (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class Resources(NamedTuple):
    """Registers of a thread, and bytes; shared is the fixed part of a block's shared memory."""

    registers: int
    shared: int
    stack: int
    spilled: int


def resources(source, architecture):
    """{"forward_kernel<float, 8, false, true>": Resources, …} of a source file."""
    kernels = re.split("(?=Compiling entry)", _report(source, architecture))[1:]
    entries = [_ENTRY.search(kernel) for kernel in kernels]
    return dict(zip(_demangled([e["name"] for e in entries]), map(_resources, entries)))


def _resources(entry):
    registers, stack, stores, loads = (
        int(entry[name]) for name in ("registers", "stack", "stores", "loads")
    )
    return Resources(registers, int(entry["shared"] or 0), stack, stores + loads)


def compile_all():
    """{(source, architecture): {kernel: Resources}}, two compilers at a time."""
    jobs = [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        tables = pool.map(lambda job: resources(*job), jobs)
        return {(source.stem, architecture): t for (source, architecture), t in zip(jobs, tables)}


def _report(source, architecture):
    """What ptxas says; kept in the build folder for as long as no source changes."""
    command = [_nvcc(), *FLAGS, f"-arch=sm_{architecture}", str(source)]
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted({*source.parent.iterdir(), *(ROOT / "csrc" / "common").iterdir()}):
        digest.update(path.read_bytes())
    kept = ROOT / "build" / "cubin" / f"{source.stem}-{architecture}-{digest.hexdigest()[:16]}.txt"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            command += ["-o", f"{folder}/cubin"]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or "warning" in done.stderr:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stderr)
    return kept.read_text()


def _nvcc():
    return os.environ.get("NVCC") or shutil.which("nvcc") or "nvcc"


def _demangled(names):
    text = subprocess.run(["c++filt", *names], check=True, capture_output=True, text=True).stdout
    return [re.search(r"\w+<.*>(?=\()", line)[0] for line in text.splitlines()]


def main():
    print(f"{'kernel':<64}{'registers':>10}{'shared':>8}{'stack':>8}{'spilled':>8}")
    for (source, architecture), table in compile_all().items():
        print(f"{source}, sm_{architecture}")
        for name, used in table.items():
            print(f"    {name:<60}{used[0]:>10}" + "".join(f"{number:>8}" for number in used[1:]))


if __name__ == "__main__":
    main()

"""Compile the CUDA kernels to machine code, without a GPU, and tell what resources each one uses.

`python -m tests.compiled.cuda_kernels` prints a table: registers, shared memory and stack per thread,
and what was spilled, that is, moved out of registers for want of them.
"""

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
ARCHITECTURES = ("80", "90a")
FLAGS = ("-cubin", "-std=c++20", "-O3", "-DFLOWKERN_ISA=cuda", "-Xptxas=-v")
_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:.*?, (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class Resources(NamedTuple):
    """What one kernel uses, per thread; shared is the fixed part of the shared memory of a block."""

    registers: int
    shared: int
    stack: int
    spilled: int


def resources(source, architecture):
    """{kernel: Resources} of a source file, for example {"forward_kernel<float, 8, false, true>": …}."""
    report = _report(source, architecture)
    entries = [_ENTRY.search(part) for part in re.split(r"(?=ptxas info +: Compiling entry)", report)]
    entries = [e for e in entries if e]
    names = _demangled([e["name"] for e in entries])
    return {
        name: Resources(int(e["registers"]), int(e["shared"] or 0), int(e["stack"]), int(e["stores"]) + int(e["loads"]))
        for name, e in zip(names, entries)
    }


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
        kept.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, "-o", str(kept.with_suffix(".cubin"))], capture_output=True, text=True)
        if done.returncode or "warning" in done.stderr:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
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
            print(f"    {name:<60}{used.registers:>10}{used.shared:>8}{used.stack:>8}{used.spilled:>8}")


if __name__ == "__main__":
    main()

"""Compile the CUDA kernels to machine code, without a GPU, and tell what resources each one uses.

What ptxas reports of each kernel, and the threads and shared memory that the ops' own host code
launches it with (launches.cpp stands in for the CUDA runtime and notes them).
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.gpu.compiled import sass
from tests.gpu.compiled.resources import Resources, occupancy
from tests.gpu.emulation.build import headers

ROOT = Path(__file__).parents[3]
SOURCES = {source.parent.name: source for source in sorted(ROOT.glob("csrc/*/cuda.cu"))}
ARCHITECTURES = ("80", "90a", "100")
_LAUNCHES = Path(__file__).with_name("launches.cpp")
_FLAGS = (
    "-c", "-std=c++20", "-O3", "-DFLOWKERN_ISA=cuda", "-Xptxas=-v",
    *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
)  # fmt: skip
_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?, (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def tables(architectures, ops):
    """(folder, architecture, {"forward_kernel<float, 8, false, true>": Resources, …}) of each op."""
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(_object, (SOURCES[op] for op in ops)))
    for op, object_ in zip(ops, objects):
        launched = _launched(op, object_)
        report = object_.with_suffix(".txt").read_text()
        kernels = [_ENTRY.search(part) for part in re.split("(?=Compiling entry)", report)[1:]]
        for architecture in architectures:
            of_it = [kernel for kernel in kernels if kernel["architecture"] == architecture]
            names = _demangled([kernel["name"] for kernel in of_it])
            table = {n: _resources(k, architecture, launched[n]) for n, k in zip(names, of_it)}
            yield SOURCES[op].parent, architecture, dict(sorted(table.items()))


def codes(op, names, architecture="90a"):
    """{name: its instructions} of kernels of an op, named as in its table."""
    object_ = _object(SOURCES[op])
    found = _ENTRY.finditer(object_.with_suffix(".txt").read_text())
    mangled = sorted({kernel["name"] for kernel in found if kernel["architecture"] == architecture})
    of_names = {m: n for m, n in zip(mangled, _demangled(mangled)) if n in names}
    found = sass.kernels(object_, of_names, f"sm_{architecture}") if of_names else {}
    return {of_names[m]: code for m, code in found.items()}


def _resources(kernel, architecture, launch):
    threads, dynamic = launch
    registers, stack, stores, loads = (int(kernel[f]) for f in ("registers", "stack", "stores", "loads"))
    shared = int(kernel["shared"] or 0) + dynamic
    full = occupancy(architecture, threads, registers, shared)
    return Resources(threads, registers, shared, stack, stores + loads, full)


def _object(source):
    """The object file; what ptxas said lies beside it. Kept for as long as no source changes."""
    command = [os.environ.get("NVCC") or shutil.which("nvcc") or "nvcc", *_FLAGS, str(source)]
    digest = hashlib.sha256(repr(command).encode())
    for path in (source, *headers(source)):
        digest.update(path.read_bytes())
    kept = ROOT / "build" / "compiled" / f"{source.parent.name}-{digest.hexdigest()[:16]}.o"
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        partial = kept.with_suffix(".partial")
        done = subprocess.run([*command, "-o", partial], capture_output=True, text=True)
        if done.returncode or "warning" in done.stderr:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        kept.with_suffix(".txt").write_text(done.stderr)
        partial.rename(kept)
    return kept


def _launched(op, object_):
    """{kernel: (threads, bytes of shared memory)}, of several launches the one with most memory."""
    launches = ROOT / "tests" / "cases" / op / "launches.h"
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/launches"
        compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
        flags = ("-std=c++20", "-Wall", "-Wextra", "-DFLOWKERN_ISA=cuda", f'-DLAUNCHES="{launches}"')
        subprocess.run([compiler, *flags, _LAUNCHES, object_, "-o", program], check=True)
        lines = subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()
    names = _demangled(lines[::3])
    launches = sorted(zip(map(int, lines[1::3]), map(int, lines[2::3]), names))
    return {name: (threads, shared) for threads, shared, name in launches}


def _demangled(names):
    text = subprocess.run(["c++filt", *names], check=True, capture_output=True, text=True).stdout
    return [re.search(r"\w+<.*>(?=\()", line)[0] for line in text.splitlines()]

"""Builds the CUDA sources, unchanged, as C++ with the emulated runtime.

`python -m tests.gpu.emulation.build` does it outside of a test.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
RUNTIME = [HERE / f"{name}.cpp" for name in ("scheduler", "memory", "hooks", "symbols", "launch")]
COMMON = (
    "-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wno-maybe-uninitialized", "-ffp-contract=off",
    "-fno-extern-tls-init",
    "-fno-gnu-unique",  # two libraries in one process have nothing in common
)  # fmt: skip
# What a CUDA compiler defines and includes by itself.
KERNEL = (
    "-x", "c++", "-D__CUDACC__", "-DFLOWKERN_ISA=cuda", "-DFLOWKERN_SANITIZED",
    f"-I{HERE / 'cuda'}", "-include", "cuda_runtime.h",
    "-fno-threadsafe-statics",  # one thread runs all; guards would call hooks
)  # fmt: skip
# Loads, stores and undefined behaviour call hooks.cpp; the sanitizers' libraries are not linked.
CHECKED = (
    "-fsanitize=thread,undefined,float-cast-overflow", "-fno-sanitize=vptr",
    "--param=tsan-instrument-func-entry-exit=0",
)  # fmt: skip
# The address sanitizer; its library must be there before the program begins (LD_PRELOAD).
ADDRESS = ("-fsanitize=address",)


def preloaded():
    """ADDRESS where the address sanitizer was there before this program, else CHECKED."""
    return ADDRESS if "libasan" in os.environ.get("LD_PRELOAD", "") else CHECKED


def kernels(csrc=ROOT / "csrc"):
    """The sources of all ops, and the entry points to them."""
    return (*sources("cuda.cu", csrc), *sorted(ROOT.glob("tests/cases/*/emulated.cpp")), HERE / "entries.cpp")


def sources(pattern, csrc=ROOT / "csrc"):
    """The files of all ops."""
    return sorted(csrc.glob(f"*/{pattern}"))


def built(flags, sources=kernels(), csrc=ROOT / "csrc"):
    """Path of a library of these sources. flags: CHECKED or ADDRESS; csrc: where the headers are."""
    # The runtime is not to be watched by its own hooks.
    quiet = () if flags == CHECKED else flags
    runtime, watched = (*COMMON, "-O2", *quiet), (*COMMON, *flags, *KERNEL)
    jobs = [(s, watched if s.suffix == ".cu" else runtime, csrc) for s in sources]
    jobs += [(s, runtime, None) for s in RUNTIME]
    assembler = translated(jobs, _spaced)

    def link(folder):
        (folder / "shared.s").write_text(_dynamic_shared(assembler))
        run("-shared", *quiet, *assembler, folder / "shared.s", "-o", folder / "kernels.so")

    return kept("kernels.so", [quiet, *assembler], link)


def translated(jobs, change=str):
    """Assembler code, after `change`, of each (source, options, csrc or None), two at a time."""

    def one(job):
        source, options, csrc = job
        folders = [Path(o[2:]) for o in options if o.startswith("-I")]
        included = headers(source, [*folders, *([csrc] if csrc else [])])

        def compile(folder):
            run(*options, *([f"-I{csrc}"] if csrc else []), "-S", source, "-o", folder / "code.s")
            (folder / "code.s").write_text(change((folder / "code.s").read_text()))

        return kept("code.s", [options, source, *folders, *included], compile)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, jobs))


def headers(source, folders=()):
    """What a source includes of its own folder and of these, and what that includes."""
    found, left = set(), [source]
    while left:
        path = left.pop()
        for name in re.findall(r'^#include ["<](.+)[">]', path.read_text(), re.MULTILINE):
            places = [(folder / name).resolve() for folder in (path.parent, *folders)]
            header = next(filter(Path.is_file, places), None)
            if header not in (None, *found):
                found.add(header)
                left.append(header)
    return sorted(found, key=_name)


def _spaced(code):
    """The same, with 64 bytes that nobody owns behind every `__shared__` array."""
    array = re.compile(r"(\t\.section\t\.tbss.*\n(?:\t.*\n)*\S+:\n\t\.zero\t)(\d+)")
    return array.sub(lambda found: f"{found[1]}{int(found[2]) + 64}", code)


def _dynamic_shared(assembler):
    """Assembler code in which every `extern __shared__` array begins at the same place."""
    code = "".join(path.read_text() for path in assembler)
    names = {*re.findall(r"(\w+)@tlsgd", code)} - {*re.findall(r"^(\w+):", code, re.MULTILINE)}
    labels = "".join(f".globl {name}\n.type {name}, @object\n{name}:\n" for name in sorted(names))
    return (
        '.section .tbss,"awT",@nobits\n.balign 1024\n.zero 1024\n'
        f"{labels}.zero 232448\n.zero 1024\n"
        '.section .note.GNU-stack,"",@progbits\n'
    )


def kept(name, inputs, build):
    """Path of the file `name` that build(folder) makes; made once for each state of the inputs.

    inputs: files, folders of them, and whatever else has a repr.
    """
    folder = ROOT / "build" / "tests" / _digest([compiler(), *inputs])
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            build(folder)
            done.touch()
    return folder / name


def _digest(inputs):
    """Of the contents and names of files, wherever they lie, and of what else there is."""
    digest = hashlib.sha256()
    for value in inputs:
        if isinstance(value, Path):
            for path in _sources(value):
                digest.update(_name(path).encode() + path.read_bytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def _name(path):
    """Of a file in its folder, wherever that lies."""
    return "/".join(path.parts[-2:])


def _sources(path):
    """The file, or all C++ and CUDA sources in the folder."""
    found = path.rglob("*.*") if path.is_dir() else [path]
    return sorted(p for p in found if p == path or p.suffix in (".h", ".cuh", ".cpp", ".cu"))


def compiler():
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def run(*arguments):
    """Runs the compiler, which has to be silent."""
    command = [compiler(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def located(report, library):
    """A report with the line of the source in place of the address in the library."""

    def line(address):
        command = ["addr2line", "-e", library, hex(int(address[1], 16) - 1)]
        place = subprocess.run(command, capture_output=True, text=True).stdout.split(" ")[0].strip()
        return f"({_name(Path(place))})"

    return re.sub(r"\[\+(0x[0-9a-f]+)\]", line, report)


if __name__ == "__main__":
    print(built(CHECKED), built(ADDRESS))

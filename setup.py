"""Builds the kernels: libflowkern_cpu.so with a C++ compiler, libflowkern_cuda.so with nvcc.

Each is a plain shared library on LibTorch's stable ABI, so one build serves every Python and every
torch >= 2.11. Without a compiler the package installs all the same, and says what is missing.

Environment: CXX, NVCC (compilers), FLOWKERN_CUDA=1|0 (build the CUDA kernels or not; default: when
nvcc is there and torch has CUDA), FLOWKERN_DEBUG=1 (-O1 -g).
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Instruction set -> flags. The portable copy is always built.
ISAS = {"portable": []}
if X86:
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
CUDA_ARCHITECTURES = ("80", "90a")
OPTIMISE = ["-O1", "-g"] if os.environ.get("FLOWKERN_DEBUG") == "1" else ["-O3"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-missing-field-initializers"]
# gcc 12 takes the undefined operands inside its own AVX-512 intrinsics for uninitialised variables.
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]


def torch_flags():
    """Include and link flags for the installed torch, restricted to the stable ABI of torch 2.11."""
    import torch.utils.cpp_extension as cpp

    includes = [f"-isystem{path}" for path in cpp.include_paths()]
    folders = [f"-L{path}" for path in cpp.library_paths()]
    return ["-DTORCH_TARGET_VERSION=0x020b000000000000", *includes], folders


def command(arguments):
    """Run a compiler; show its output only when it fails or warns."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    text = (done.stdout + done.stderr).strip()
    if text:
        print(text, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"failed ({done.returncode}): {' '.join(map(str, arguments))}")


def compile_all(jobs):
    """Run the compiler jobs, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(command, jobs))


class Build(build_ext):
    """Compiles with the compiler directly: per-file flags are what setuptools cannot do."""

    def run(self):
        for extension in self.extensions:
            self.build_extension(extension)

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, extension):
        name = extension.name.rpartition("_")[2]
        missing = {"cpu": missing_for_cpu, "cuda": missing_for_cuda}[name]()
        if missing:
            warn(name, missing)
            return
        target = Path(self.get_ext_fullpath(extension.name))
        objects = Path(self.build_temp) / name
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        {"cpu": build_cpu, "cuda": build_cuda}[name](objects, target)

    def get_outputs(self):
        return [p for p in super().get_outputs() if Path(p).exists()]


def compiler():
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def nvcc():
    return os.environ.get("NVCC") or shutil.which("nvcc")


def missing_for_cpu():
    """What keeps the CPU kernels from being built, or None."""
    if not compiler():
        return "no C++ compiler was found; install g++ 11 or later (or set CXX)"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed where the build runs; install it and use --no-build-isolation"
    probe = [compiler(), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(probe, input="#include <concepts>\n", text=True, capture_output=True).returncode:
        return f"{compiler()} does not compile C++20; install g++ 11 or later (or set CXX)"
    return None


def missing_for_cuda():
    """What keeps the CUDA kernels from being built, or None."""
    wish = os.environ.get("FLOWKERN_CUDA")
    if wish == "0":
        return "FLOWKERN_CUDA=0"
    if missing_for_cpu():
        return missing_for_cpu()
    if not nvcc():
        return "nvcc was not found; install the CUDA toolkit (or set NVCC)"
    import torch

    if wish != "1" and torch.version.cuda is None:
        return "this torch has no CUDA; FLOWKERN_CUDA=1 builds the kernels all the same"
    return None


def warn(name, missing):
    """One clear message; a missing CUDA build is news only to those who have CUDA."""
    fallback = (
        "the slow reference implementation runs on the CPU" if name == "cpu" else ("the Triton kernels run on a GPU")
    )
    if name == "cpu" or nvcc() and os.environ.get("FLOWKERN_CUDA") != "0":
        print(f"flowkern: the {name} kernels are not built: {missing}. Until then {fallback}.", file=sys.stderr)


def build_cpu(objects, target):
    """cpu.cpp once, …simd.cpp once per instruction set, linked into one library."""
    flags, folders = torch_flags()
    common = [compiler(), "-c", "-std=c++20", "-fPIC", "-fvisibility=hidden", *OPTIMISE, *WARNINGS]
    jobs, outputs = [], []
    for source in sorted(CSRC.glob("*/cpu.cpp")):
        outputs.append(objects / f"{source.parent.name}_{source.stem}.o")
        jobs.append([*common, *flags, str(source), "-o", str(outputs[-1])])
    for source in sorted(CSRC.glob("*/*simd.cpp")):
        for isa, isa_flags in ISAS.items():
            outputs.append(objects / f"{source.parent.name}_{source.stem}_{isa}.o")
            options = [*QUIET, *isa_flags, f"-DFLOWKERN_ISA={isa}", "-ffp-contract=off"]
            jobs.append([*common, *options, str(source), "-o", str(outputs[-1])])
    compile_all(jobs)
    link = [compiler(), "-shared", *map(str, outputs), *folders, "-ltorch_cpu", "-lc10", "-lm"]
    command([*link, "-o", str(target)])


def build_cuda(objects, target):
    """Every cuda.cu for each architecture and every cuda.cpp, with a static CUDA runtime."""
    flags, folders = torch_flags()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
    code.append("-gencode=arch=compute_90,code=compute_90")  # later GPUs compile from this
    kernels = [nvcc(), "-c", "-std=c++20", "-O3", "-DFLOWKERN_ISA=cuda"]
    kernels += ["-Xcompiler=-fPIC,-fvisibility=hidden", *code]
    calls = [compiler(), "-c", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-DUSE_CUDA"]
    calls += [*OPTIMISE, *WARNINGS, *flags]
    jobs, outputs = [], []
    for pattern, line in (("*/cuda.cu", kernels), ("*/cuda.cpp", calls)):
        for source in sorted(CSRC.glob(pattern)):
            outputs.append(objects / f"{source.parent.name}_{source.name}.o")
            jobs.append([*line, str(source), "-o", str(outputs[-1])])
    compile_all(jobs)
    # The nvcc of PyPI looks for its runtime in lib64, but it comes in lib.
    folders.append(f"-L{Path(shutil.which(nvcc()) or nvcc()).resolve().parents[1] / 'lib'}")
    import torch

    if torch.version.cuda is None:
        folders.append(f"-L{objects}")
        stand_in_for_torch_cuda(objects / "libtorch_cuda.so")
    link = [nvcc(), "-shared", "-cudart", "static", *map(str, outputs), *folders]
    command([*link, "-ltorch_cpu", "-lc10", "-Xlinker=--no-as-needed", "-ltorch_cuda", "-o", str(target)])


def stand_in_for_torch_cuda(target):
    """An empty library of that name to link to, so that torch's own is asked for when ours is loaded."""
    command([compiler(), "-shared", f"-Wl,-soname,{target.name}", "-x", "c++", os.devnull, "-o", str(target)])


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries do not use Python's own ABI."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("flowkern.libflowkern_cpu", []), Extension("flowkern.libflowkern_cuda", [])],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)

"""Builds the kernels: libflowkern_cpu.so with a C++ compiler, libflowkern_cuda.so with nvcc.

Each is a plain shared library on LibTorch's stable ABI, so one build serves every Python and every
torch >= 2.11. Without a compiler the package installs all the same, and says what is missing.

Of torch only headers are needed: those of the environment that is installed into, if it has torch.

Environment: CXX, NVCC (compilers; CXX may be a cross compiler), FLOWKERN_CUDA=1|0 (build the CUDA kernels
or not; default: when nvcc is there and torch has CUDA), FLOWKERN_CUDA_ARCHITECTURES=80,90a (of the machine code;
later GPUs compile what is added for them), FLOWKERN_GLIBC=2.28 (run on every Linux with this
glibc or a later one; needs the package ziglang), FLOWKERN_COMPILED=0 (build nothing), FLOWKERN_DEBUG=1 (-O1 -g).
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
OLDEST_TORCH = (2, 11)
# Machine -> instruction set -> flags. The portable copy is always built.
ISAS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"],
    },
    "aarch64": {"neon": ["-DFLOWKERN_NEON"]},
}
CUDA_ARCHITECTURES = tuple(os.environ.get("FLOWKERN_CUDA_ARCHITECTURES", "80,90a").split(","))
GLIBC = os.environ.get("FLOWKERN_GLIBC")
COMPILED = os.environ.get("FLOWKERN_COMPILED") != "0"
OPTIMISE = ["-O1", "-g"] if os.environ.get("FLOWKERN_DEBUG") == "1" else ["-O3"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-missing-field-initializers"]
# gcc 12 takes the undefined operands inside its own AVX-512 intrinsics for uninitialised variables.
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]


@cache
def torch_folder():
    """Where a torch that is new enough lies: what the build may import, or what pip's isolation hides from it."""
    spec = importlib.util.find_spec("torch")
    folders = [*spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
    folders += [f"{sysconfig.get_path(kind)}/torch" for kind in ("purelib", "platlib")]
    return next((Path(folder) for folder in folders if torch_version(Path(folder)) >= OLDEST_TORCH), None)


def torch_version(folder):
    header = folder / "include/torch/headeronly/version.h"
    text = header.read_text() if header.exists() else ""
    return tuple(int(n) for n in re.findall(r"define TORCH_VERSION_M\w+ (\d+)", text))


def torch_flags():
    """Flags for torch's headers, restricted to the stable ABI of torch 2.11."""
    return ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{torch_folder() / 'include'}"]


@cache
def machine():
    """The machine that the compiler builds for."""
    named = subprocess.run([compiler(), "-dumpmachine"], text=True, capture_output=True).stdout if compiler() else ""
    return named.partition("-")[0] or platform.machine().lower()


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
        if not COMPILED:
            return
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
    if not torch_folder():
        return "no torch 2.11 or later was found; install it first, in the same environment"
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
    if wish != "1" and not (torch_folder() / "lib/libtorch_cuda.so").exists():
        return "this torch has no CUDA; FLOWKERN_CUDA=1 builds the kernels all the same"
    return None


def warn(name, missing):
    """One clear message; a missing CUDA build is news only to those who have CUDA."""
    fallback = (
        "the slow reference implementation runs on the CPU" if name == "cpu" else ("the Triton kernels run on a GPU")
    )
    if name == "cpu" or nvcc() and os.environ.get("FLOWKERN_CUDA") != "0":
        print(f"flowkern: the {name} kernels are not built: {missing}. Until then {fallback}.", file=sys.stderr)


def host_flags():
    """How C++ is compiled that runs on the CPU."""
    return [compiler(), "-c", "-std=c++20", "-fPIC", "-fvisibility=hidden", *OPTIMISE, *WARNINGS]


def build_cpu(objects, target):
    """cpu.cpp once, …simd.cpp once per instruction set, linked into one library."""
    jobs, outputs = [], []
    for source in sorted(CSRC.glob("*/cpu.cpp")):
        outputs.append(objects / f"{source.parent.name}_{source.stem}.o")
        jobs.append([*host_flags(), *torch_flags(), str(source), "-o", str(outputs[-1])])
    for source in sorted(CSRC.glob("*/*simd.cpp")):
        for isa, isa_flags in {"portable": [], **ISAS.get(machine(), {})}.items():
            outputs.append(objects / f"{source.parent.name}_{source.stem}_{isa}.o")
            options = [*QUIET, *isa_flags, f"-DFLOWKERN_ISA={isa}", "-ffp-contract=off"]
            jobs.append([*host_flags(), *options, str(source), "-o", str(outputs[-1])])
    compile_all(jobs)
    link(objects, outputs, ["torch_cpu"], target)


def build_cuda(objects, target):
    """Every cuda.cu for each architecture and every cuda.cpp, with a static CUDA runtime."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
    code.append("-gencode=arch=compute_90,code=compute_90")  # later GPUs compile from this
    kernels = [nvcc(), "-c", "-std=c++20", "-O3", "-DFLOWKERN_ISA=cuda"]
    kernels += ["-Xcompiler=-fPIC,-fvisibility=hidden", *code]
    calls = [*host_flags(), *torch_flags(), "-DUSE_CUDA"]
    jobs, outputs = [], []
    for pattern, line in (("*/cuda.cu", kernels), ("*/cuda.cpp", calls)):
        for source in sorted(CSRC.glob(pattern)):
            outputs.append(objects / f"{source.parent.name}_{source.name}.o")
            jobs.append([*line, str(source), "-o", str(outputs[-1])])
    compile_all(jobs)
    outputs.append(cuda_runtime(objects))
    link(objects, outputs, ["torch_cpu", "torch_cuda"], target)


def cuda_runtime(objects):
    """The static CUDA runtime of this nvcc, from where it looks for it; the nvcc of PyPI has it in lib, not lib64."""
    empty = objects / "empty.cu"
    empty.touch()
    told = subprocess.run([nvcc(), "--dryrun", str(empty)], capture_output=True, text=True).stderr
    folders = re.findall(r'"-L([^"]+)"', told)
    folders += [re.sub("/lib64$", "/lib", folder) for folder in folders]
    runtimes = [Path(folder, "libcudart_static.a") for folder in folders]
    found = next((runtime for runtime in runtimes if runtime.exists()), None)
    if found is None:
        raise RuntimeError(f"libcudart_static.a was not found in any of {', '.join(folders)}")
    return found


def link(objects, outputs, torch_names, target):
    """One shared library, which asks for these libraries of torch when it is loaded."""
    if sys.platform != "linux":
        libraries = [f"-L{torch_folder() / 'lib'}", *(f"-l{name}" for name in torch_names)]
        command([compiler(), "-shared", *map(str, outputs), *libraries, "-o", str(target)])
        return
    torch = [torch_library(objects, name) for name in torch_names]
    if GLIBC:
        link_to_older_libraries(objects, [*outputs, *torch], target)
    else:
        needed = ["-Wl,--no-as-needed", *map(str, torch), "-Wl,--as-needed"]
        system = ["-lm", "-lpthread", "-ldl", "-lrt"]
        command([compiler(), "-shared", *map(str, outputs), *needed, *system, "-o", str(target)])


def torch_library(objects, name):
    """An empty library of the same name. It serves as well as torch's own, which may be of another machine."""
    library = objects / f"lib{name}.so"
    soname = ["-shared", f"-Wl,-soname,{library.name}"]
    # One symbol that ours uses, so that no linker leaves the library out.
    symbol = {"torch_cpu": "aoti_torch_get_dim", "torch_cuda": "aoti_torch_get_current_cuda_stream"}[name]
    source = library.with_suffix(".cpp")
    source.write_text(f'extern "C" void {symbol}() {{}}\n')
    command([compiler(), *soname, "-fPIC", str(source), "-o", str(library)])
    return library


def link_to_older_libraries(objects, inputs, target):
    """Link to the glibc of version GLIBC, of which zig knows the symbols, and to the compiler's own libstdc++."""
    later = objects / "older_libraries.o"
    command([*host_flags(), str(CSRC / "common/older_libraries.cpp"), "-o", str(later)])
    zig = [sys.executable, "-m", "ziglang", "build-lib", "-dynamic", "-fno-compiler-rt", "-fstrip", "-fno-soname"]
    zig += ["-target", f"{machine()}-linux-gnu.{GLIBC}", "-lc", "-lm", "-lpthread", "-ldl", "-lrt"]
    gcc = [compiler_file(name) for name in ("libstdc++.so", "libgcc_s.so.1", "libgcc.a")]
    command([*zig, *map(str, inputs), str(later), *gcc, f"-femit-bin={target}"])


def compiler_file(name):
    return subprocess.run([compiler(), f"-print-file-name={name}"], text=True, capture_output=True).stdout.strip()


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries do not use Python's own ABI."""

    def get_tag(self):
        if not list(Path(self.bdist_dir).rglob("*.so")):
            return ("py3", "none", "any")
        if sys.platform != "linux":
            return ("py3", "none", super().get_tag()[2])
        system = f"manylinux_{GLIBC.replace('.', '_')}" if GLIBC else "linux"
        return ("py3", "none", f"{system}_{machine()}")


setup(
    ext_modules=[Extension("flowkern.libflowkern_cpu", []), Extension("flowkern.libflowkern_cuda", [])],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    # An isolated build gets a torch of its own only where the environment that is installed into has none.
    setup_requires=["torch>=2.11"] if COMPILED and compiler() and not torch_folder() else [],
)

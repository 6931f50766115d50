"""All that the gate needs on a machine which fetches and builds nothing: `make gpu-bundle`, without a GPU.

    python -m tests.gpu.gate.bundle         writes build/gpu-bundle

It holds both libraries for sm_90a, a driver for each variant, recorded problems, wheels of other libraries, the
digest of the sources, and run.sh, which is all that is called there.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import cases
from tests.gpu.gate import drivers, limits, problems, variants
from tests.gpu.gate.gate import ROOT, digest

OUT = ROOT / "build" / "gpu-bundle"
TEMPORARY = ROOT / "build" / "gpu-bundle-temporary"
ARCHITECTURE = "90a"
MOST = 60 * 2**20  # bytes, of the sources too
WHEELS = ("nflows==0.14", "zuko==1.6.0", "normflows==1.7.3", "torchdiffeq==0.2.5")
LIBRARIES = ("libflowkern_cpu.so", "libflowkern_cuda.so")

RUN = """#!/bin/sh
# Called in the repository's root: sh build/gpu-bundle/run.sh [ARGUMENTS of tests.gpu.gate]; results go to $OUT.
begun=$(date +%%s) bundle=build/gpu-bundle
cp $bundle/lib*.so flowkern/
chmod +x $bundle/driver*
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --target $site $bundle/wheels/*.whl
export PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1
# Loaded or not: what is carried may ask for other system libraries than there are.
if ! python3 -c "import sys; from flowkern import _library; sys.exit(any(_library._REASONS.values()))"; then
    FLOWKERN_CUDA=1 FLOWKERN_CUDA_ARCHITECTURES=%(architecture)s python3 setup.py -q build_ext --inplace
fi
exec python3 -m tests.gpu.gate --begun $begun "$@"
"""


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "wheels").mkdir(parents=True)
    libraries()
    for name, options in ({"": ()} | variants.VARIANTS).items():
        driver(OUT / "-".join(filter(None, ("driver", name))), options)
    problems.write(problems.small(), OUT / "small.problems")
    problems.write(problems.large(), OUT / "large.problems")
    wheels()
    script()
    print(f"{OUT}: {check_size() / 2**20:.1f} MiB with the sources")


def script():
    (OUT / "run.sh").write_text(RUN % {"architecture": ARCHITECTURE})
    stamp = {"csrc": digest("csrc/**/*.*", "setup.py"), "architecture": ARCHITECTURE}
    stamp |= {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in map(OUT.joinpath, LIBRARIES) if p.exists()
    }
    (OUT / limits.STAMP).write_text(json.dumps(stamp, indent=1) + "\n")


def libraries():
    """By setup.py; its object files are kept, for the drivers."""
    folders = [f"--build-lib={TEMPORARY / 'lib'}", f"--build-temp={TEMPORARY}"]
    environment = os.environ | {"FLOWKERN_CUDA": "1", "FLOWKERN_CUDA_ARCHITECTURES": ARCHITECTURE, "NVCC": nvcc()}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", *folders], cwd=ROOT, env=environment, check=True)
    for name in LIBRARIES:
        path = shutil.copy(TEMPORARY / "lib" / "flowkern" / name, OUT)
        subprocess.run(["strip", "--strip-unneeded", path], check=True)


def driver(path, options):
    """With the library's own kernels, or compiled with the options of a variant."""
    folder = TEMPORARY / path.name
    folder.mkdir(exist_ok=True)
    ops = cases.modules("emulated")
    own = {op: TEMPORARY / "cuda" / f"{op}_cuda.cu.o" for op in ops}
    kernels = own if not options else {op: folder / f"{op}.o" for op in ops}
    device = [nvcc(), "-c", "-std=c++20", "-O3", "-DFLOWKERN_ISA=cuda", f"-arch=sm_{ARCHITECTURE}"]
    host = [compiler(), "-c", "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}"]
    jobs = [[*host, ROOT / "tests" / "cases" / op / "emulated.cpp", "-o", folder / f"{op}_entry.o"] for op in ops]
    jobs.append([*device, drivers.entries(), drivers.SOURCE, "-o", folder / "driver.o"])
    if options:
        jobs += [[*device, *options, ROOT / "csrc" / op / "cuda.cu", "-o", kernels[op]] for op in ops]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, jobs))
    entries = [folder / f"{op}_entry.o" for op in ops]
    _run(
        [
            compiler(),
            folder / "driver.o",
            *entries,
            *kernels.values(),
            _runtime(),
            "-lpthread",
            "-ldl",
            "-lrt",
            "-o",
            path,
        ]
    )
    _run(["strip", path])


def _run(line):
    done = subprocess.run([*map(str, line)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, line))}\n{done.stderr}")


def nvcc():
    return os.environ.get("NVCC") or shutil.which("nvcc") or "nvcc"


def compiler():
    return os.environ.get("CXX") or "g++"


def _runtime():
    """The static CUDA runtime, beside nvcc."""
    toolkit = Path(shutil.which(nvcc()) or nvcc()).resolve().parents[1]
    return next(path for path in (toolkit / f / "libcudart_static.a" for f in ("lib", "lib64")) if path.exists())


def wheels():
    """Plain Python; nflows is published as source alone, and made one."""
    line = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", OUT / "wheels", *WHEELS]
    subprocess.run(line, check=True)


def check_size():
    """Bytes that travel; RuntimeError if they are too many."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    paths = [ROOT / name for name in tracked if name and (ROOT / name).exists()] + [
        *OUT.rglob("*.*"),
        *OUT.glob("driver*"),
    ]
    size = sum(path.stat().st_size for path in {*paths} if path.is_file())
    if size > MOST:
        raise RuntimeError(f"the bundle and the sources have {size / 2**20:.1f} MiB, more than {MOST / 2**20:.0f}")
    return size


if __name__ == "__main__":
    main()

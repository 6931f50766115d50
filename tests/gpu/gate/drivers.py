"""driver.cu, built: for the GPU with the bundle (bundle.py), as C++ with the emulation for a dry run."""

import functools
import json
import subprocess

from tests import cases
from tests.gpu.emulation import build
from tests.gpu.gate import problems
from tests.gpu.gate.gate import ROOT
from tests.gpu.gate.supervise import scratch

SOURCE = build.HERE.parent / "gate" / "driver.cu"
BUNDLE = ROOT / "build" / "gpu-bundle"
DRY = 2**-12  # of the rows of the large problems


def entries():
    """The compiler's flag that names all entry points."""
    return "-DENTRIES(X)=" + " ".join(f"X({op})" for op in cases.modules("emulated"))


@functools.cache
def found(gate):
    """{variant: path} of the drivers, "" being the library's own; and of the files of problems."""
    if gate.dry_run:
        return {"": _emulated()}, _files(scratch(gate.out))
    drivers = {p.name.removeprefix("driver").lstrip("-"): p for p in sorted(BUNDLE.glob("driver*"))}
    return drivers, {name: BUNDLE / f"{name}.problems" for name in ("small", "large")}


def missing(gate):
    return "" if found(gate)[0] else "the bundle with the drivers is not there (make gpu-bundle)"


def _files(folder):
    """Of few and small problems."""
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name}.problems" for name in ("small", "large")}
    problems.write(problems.small()[::8], files["small"])
    problems.write(problems.large(DRY), files["large"])
    return files


def _emulated():
    """The library of the emulation holds all but the driver itself."""
    library = build.built(build.CHECKED)
    options = ("-std=c++20", "-O1", "-x", "c++", "-DFLOWKERN_EMULATED", entries())

    def link(folder):
        flags = ("-Wl,--no-as-needed", f"-Wl,-rpath,{library.parent}")
        build.run(*options, SOURCE, "-x", "none", library, *flags, "-o", folder / "driver")

    return build.kept("driver", [options, SOURCE, library], link)


def run(driver, file, *more, before=(), seconds=60):
    """What it prints, and its exit code; `before`: a tool and its options."""
    line = [*before, driver, file, *more]
    return subprocess.run(line, capture_output=True, text=True, timeout=seconds)


def timed(text):
    """{problem: seconds of each call} of what the driver prints."""
    lines = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    return {line["name"]: line["seconds"] for line in lines}

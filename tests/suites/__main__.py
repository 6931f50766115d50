"""The libraries' own tests, as they are and with every model accelerated.

    python -m tests.suites [LIBRARY …] [LIBRARY=FOLDER …]

A library's tests come from its source distribution, or from a folder where that has none. For each library it
prints how many tests pass plain and accelerated and how many layers were replaced. A test that passes plain and
fails accelerated is an error.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "suites"


class Suite(NamedTuple):
    """Where a library's tests lie in its distribution, how pytest is told to run them, and whose models they build."""

    tests: str
    arguments: tuple = ()
    libraries: tuple = ()


SUITES = {
    "nflows": Suite("tests", ("-o", "python_files=*_test.py")),
    "zuko": Suite("tests"),
    "normflows": Suite("normflows", ("-o", "python_files=*_test.py")),
    "FrEIA": Suite("tests"),
    "sbi": Suite("tests/density_estimator_test.py", ("-m", "not slow and not gpu", "-n", "auto"), ("nflows", "zuko")),
}


def main(*chosen):
    """How many of the chosen libraries, or of all, have tests that pass only without flowkern."""
    folders = dict(one.partition("=")[::2] for one in chosen) or dict.fromkeys(SUITES, "")
    return sum(_run(library, Path(folder) if folder else _sources(library)) for library, folder in folders.items())


def _run(library, folder):
    """Prints a library's line, and a line for each test that fails accelerated alone; whether there is any."""
    if not (folder / SUITES[library].tests).exists():
        print(f"{library}: its distribution has no tests; give {library}=FOLDER")
        return False
    runs = [_start(library, folder, accelerated) for accelerated in (False, True)]  # side by side
    (plain, _), (fast, replaced) = (_results(*run) for run in runs)
    passed = [name for name, message in plain.items() if message is None]
    lost = {name: fast.get(name, "did not run") for name in passed if fast.get(name, "did not run") is not None}
    counts = f"{len(plain)} tests, {len(passed)} pass plain, {len(passed) - len(lost)} of these accelerated"
    print(f"{library} {version(library)}: {counts}; {replaced}")
    for name, message in lost.items():
        print(f"  {name}: {message}")
    return bool(lost) or not (passed and replaced)


def _sources(library):
    """The unpacked source distribution of the installed version."""
    release = f"{library}-{version(library)}"
    if not (BUILD / release).is_dir():
        BUILD.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--no-build-isolation"]
        subprocess.run([*command, "-q", "-d", BUILD, f"{library}=={version(library)}"], check=True)
        archives = [path for path in BUILD.glob("*.tar.gz") if path.name.lower() == f"{release}.tar.gz".lower()]
        with tarfile.open(archives[0]) as archive:
            archive.extractall(BUILD, filter="data")
    return BUILD / release


def _start(library, folder, accelerated):
    """(the process that runs the tests, where its report will be)."""
    report = BUILD / f"{library}-{'accelerated' if accelerated else 'plain'}.xml"
    report.unlink(missing_ok=True)
    suite = SUITES[library]
    environment = os.environ | {"PYTHONPATH": str(_path()), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment |= {"FLOWKERN_LIBRARIES": " ".join(suite.libraries or (library,))} if accelerated else {}
    command = [sys.executable, "-m", "pytest", "-p", "accelerated", "-q", "-p", "no:cacheprovider"]
    arguments = (f"--junitxml={report}", *suite.arguments, suite.tests)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], cwd=folder, env=environment, **pipes), report


def _path():
    """A folder with flowkern and the plugin alone: some libraries' tests are a package called `tests`, too."""
    folder = BUILD / "path"
    folder.mkdir(parents=True, exist_ok=True)
    for target in (ROOT / "flowkern", ROOT / "tests" / "suites" / "accelerated.py"):
        link = folder / target.name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return folder


def _results(process, report):
    """({test: None, or the message of its failure}, the line on what was replaced)."""
    output = process.communicate()[0]
    if not report.exists():
        print(output)
        return {}, ""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    replaced = (line for line in output.splitlines() if line.startswith("replaced:"))
    return dict(_case(case) for case in cases if case.find("skipped") is None), next(replaced, "")


def _case(case):
    failure = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
    message = None if failure is None else (failure.get("message") or "failed").splitlines()[0]
    return f"{case.get('classname')}.{case.get('name')}", message


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

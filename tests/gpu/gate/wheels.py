"""The peer libraries from wheels: nothing is fetched."""

import importlib.metadata
import subprocess
import sys
import zipfile

from tests.gpu.gate.gate import PEERS


def install(folder, site):
    """Unpack the wheels of `folder` into `site`, put it on the path; what is still missing, as text."""
    problems = [] if folder is None else [_unpack(wheel, site) for wheel in sorted(folder.glob("*.whl"))]
    sys.path.insert(0, str(site))
    problems += [_broken(name, site) if _installed(name) else _missing(name, folder) for name in PEERS]
    return "; ".join(filter(None, problems)) or "all peer libraries are there"


def _unpack(wheel, site):
    """A wheel of plain Python is its own folder, zipped."""
    if not wheel.name.endswith("-any.whl"):
        return f"{wheel.name}: not plain Python, not unpacked"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    return None


def _installed(name):
    return next(importlib.metadata.distributions(name=name), None) is not None


def _missing(name, folder):
    where = "hand over wheels with --wheels" if folder is None else f"no wheel in {folder.name}"
    return f"{name} is missing: {where}; it is left out of the comparison"


def _broken(name, site):
    """Whether a library cannot be imported, for want of something that it needs."""
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode and f"{name} does not import: {done.stderr.strip().splitlines()[-1]}"

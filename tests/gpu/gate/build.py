"""Both libraries, by setup.py, and that the CUDA one loads and holds a kernel of every op that has one."""

import json
import os
import subprocess
import sys
import time

from flowkern import _library
from tests.gpu.gate.correctness import OPS
from tests.gpu.gate.gate import ROOT

_REGISTERED = """
import json, sys, flowkern
from flowkern import _library
print(json.dumps({"cuda": _library._REASONS["cuda"], **{op: _library.compiled(op) for op in sys.argv[1:]}}))
"""


def names(gate, results):
    return ["libraries"]


def stamp(gate):
    """Built files may be gone though their results are kept."""
    return "built" if all(_path(gate, name).exists() for name in ("cpu", "cuda")) else "missing"


def run(name, gate):
    start = time.monotonic()
    where = ["--inplace"]
    if gate.dry_run:
        where = [f"--build-lib={gate.out / 'build'}", f"--build-temp={gate.out / 'temp'}"]
    line = [sys.executable, "setup.py", "build_ext", *where]
    subprocess.run(line, cwd=ROOT, env=os.environ | {"FLOWKERN_CUDA": "1"}, check=True)
    result = {"seconds": round(time.monotonic() - start, 1)}
    missing = [n for n in ("cpu", "cuda") if not _path(gate, n).exists()]
    if missing:
        return result | {"failures": [f"not built: {', '.join(missing)}; see the log"]}
    return result if gate.dry_run else result | _registered()


def _path(gate, name):
    path = _library.path(name)
    return gate.out / "build" / "flowkern" / path.name if gate.dry_run else path


def _registered():
    """For which devices the freshly built libraries hold a kernel of each op."""
    line = [sys.executable, "-c", _REGISTERED, *(op for op, (on, _) in OPS.items() if "cuda" in on)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"failures": [done.stderr.strip().splitlines()[-1]]}
    found = json.loads(done.stdout)
    failures = [f"the CUDA library: {found['cuda']}"] if found.pop("cuda") else []
    failures += [f"{op}: no CUDA kernel" for op, devices in found.items() if "cuda" not in devices]
    return {"registered": found, "failures": failures}

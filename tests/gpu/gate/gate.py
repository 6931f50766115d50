"""What every item of the gate is told: where it may write, and on what it runs."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch

from flowkern.report.machine import version
from tests.gpu.gate.stopwatch import Stopwatch

ROOT = Path(__file__).parents[3]
BACKENDS = ("cuda", "triton")
PEERS = ("nflows", "zuko", "normflows")
_SOURCES = (
    "setup.py", "csrc/**/*.cpp", "csrc/**/*.cu*", "csrc/**/*.h", "flowkern/**/*.py", "bench/**/*.py",
    "tests/*.py", "tests/cases/**/*.py", "tests/gpu/gate/*.py",
)  # fmt: skip


class Gate(NamedTuple):
    """A dry run has no GPU: Triton's interpreter and the emulation of CUDA run the kernels."""

    out: Path
    dry_run: bool

    @property
    def title(self):
        return "dry-run" if self.dry_run else "gate"

    @property
    def device(self):
        return "cpu" if self.dry_run else "cuda"

    @contextlib.contextmanager
    def on(self, backend):
        """Inside, the backend of the name that is returned is `backend`, "cuda" or "triton"."""
        if not (self.dry_run and backend == "cuda"):
            yield backend
            return
        from tests.gpu.emulation import device

        with device.emulated():
            yield "cpu"

    def stopwatch(self):
        """That measures calls on the device."""
        return Stopwatch(self)

    def environment(self):
        """Of a process: with the peer libraries that were handed over, and Triton's interpreter in a dry run."""
        path = os.pathsep.join(filter(None, (str(self.out / "site"), os.environ.get("PYTHONPATH"))))
        interpreted = {"TRITON_INTERPRET": "1"} if self.dry_run else {}
        return os.environ | {"PYTHONPATH": path} | interpreted

    def peers(self):
        """The versions of the peer libraries, and which are missing."""
        return ", ".join(f"{name} {version(name)}" for name in PEERS)

    def about(self):
        """What the results depend on, and `key`, which tells one such state from another."""
        gpu = "none (dry run)" if self.dry_run else torch.cuda.get_device_name()
        fields = {
            "dry run": self.dry_run,
            "GPU": gpu,
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
            "triton": version("triton"),
            "sources": _digest(),
        }
        return fields | {"key": hashlib.sha256(repr(fields).encode()).hexdigest()[:12]}


def _digest():
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]

"""What every item of the gate is told: where it may write, and on what it runs."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flowkern.report.machine import version
from tests.gpu.gate import Item
from tests.gpu.gate.stopwatch import Stopwatch

ROOT = Path(__file__).parents[3]
BACKENDS = ("cuda", "triton")
LIBRARIES = ("nflows", "zuko", "normflows", "torchdiffeq")


class Gate(NamedTuple):
    """A dry run has no GPU: Triton's interpreter and the emulation of CUDA run the kernels."""

    out: Path
    dry_run: bool
    log: Any = None

    backends = BACKENDS

    @staticmethod
    def item(*arguments):
        """An `Item`, for the parts that are benchmarks."""
        return Item(*arguments)

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

    @contextlib.contextmanager
    def of(self, part):
        """Inside, nothing is left of the settings that another part has made."""
        precision = torch.get_float32_matmul_precision()
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)

    def tell(self, part, item, check):
        """Keep a part of an item's result at once."""
        if self.log:
            self.log.add(part=part, item=item, check=check)

    def stopwatch(self):
        """That measures calls on the device."""
        return Stopwatch(self)

    def usable(self):
        """Whether this process can still use the GPU: after some errors it cannot."""
        if self.dry_run:
            return True
        try:
            torch.cuda.synchronize()
            return True
        except RuntimeError:
            return False

    def about(self):
        """What the results depend on."""
        gpu = "none (dry run)" if self.dry_run else torch.cuda.get_device_name()
        return {
            "dry run": self.dry_run,
            "GPU": gpu,
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
            "triton": version("triton"),
            "sources": digest("csrc/**/*.*", "flowkern/**/*.py"),
            "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        }


def digest(*patterns):
    """Of the files of the repository that fit one of them."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()):
        found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:12]

"""A process of its own for the sanitized kernels: python -m tests.emulation.sanitized STEP."""

import os
import subprocess
import sys
from dataclasses import replace

import torch

from tests import cases
from tests.emulation import device

NAMES = {
    "affine_coupling": ("exp", "additive", "index", "sliced", "expanded", "transposed_index"),
    "rational_quadratic_spline": ("k1", "k8", "k16", "k33", "index", "circular", "sliced", "softclip", "bounds_index"),
}


def start(step):
    """Run a step with the sanitizer loaded before Python."""
    preload = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": preload, device.SANITIZED: "1", "OMP_NUM_THREADS": "1"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
    command = [sys.executable, "-m", __name__, step]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


def clean():
    """Nothing is wrong with these, so nothing is said."""
    for op, names in NAMES.items():
        table = cases.AFFINES if op == "affine_coupling" else cases.SPLINES
        for name in names:
            for dtype in (torch.float32, torch.float64):
                for inverse in (False, True):
                    cases.check(replace(table[name], batch=(41,)), "cpu", dtype, inverse=inverse)


def shared_memory():
    """The last log-det of the block lies beyond the end of its shared memory."""
    device.configure(withheld=16)
    cases.check(cases.SPLINES["k8"], "cpu", torch.float32)


def main_memory():
    """x has a row less than the kernel is told."""
    x, params = cases.AFFINES["exp"].tensors()
    device.OPS["affine_coupling"](x[:-1].clone().as_strided(x.shape, x.stride()) if 0 else _short(x), params, None, False, False, 1, 0.0, 0.0, 1.0, 1.0)


if __name__ == "__main__":
    with device.emulated():
        {f.__name__: f for f in (clean, shared_memory, main_memory)}[sys.argv[1]]()
    print("finished")

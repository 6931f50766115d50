"""A part of `make sanitize` that is fast: emulated CUDA kernels under the address sanitizer."""

import subprocess

import pytest

from tests.emulation import build as emulation
from tests.sanitizers import build

CASES = [
    *("affine-exp", "affine-additive", "affine-index", "affine-sliced", "affine-transposed_index"),
    *("affine-wide", "affine-expanded", "spline-k1", "spline-k8", "spline-k16", "spline-k33"),
    *("spline-index", "spline-circular", "spline-sliced", "spline-bounds_index", "spline-wide-k3"),
    *("spline-softclip-k10", "ode-one sample", "ode-noise", "ode-workspace", "stage-(5, 8) by row"),
]


@pytest.mark.timeout(900)
def test_address_sanitizer_has_nothing_to_say():
    library = emulation.built(emulation.ADDRESS)
    command = build.command("address", "-m", "tests.sanitizers.run", "emulated", library, *CASES)
    done = subprocess.run(command, env=build.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(CASES)} cases\n"

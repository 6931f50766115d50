"""Every Triton kernel compiles for every architecture, without spilling where it should not."""

import os
import subprocess
import sys

import pytest

# Needs no import of triton_kernels: this process may have Triton's interpreter loaded.
ARCHITECTURES = (80, 90, 100)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled.triton_kernels", str(architecture)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{architecture} " in done.stdout

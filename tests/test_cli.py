"""`python -m flowkern info` and `python -m demo`."""

import os
import subprocess
import sys

import pytest
import torch

import flowkern
from demo.__main__ import main as demo_main
from flowkern import backends
from flowkern.__main__ import main


def test_info_prints_versions_and_why_a_backend_is_missing(capsys):
    main(["info"])
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and flowkern.__version__ in printed
    for name in backends.NAMES:
        assert backends.unavailable(name) is None or backends.unavailable(name) in printed
    assert f"CPU tensors run on: {backends.resolve('cpu')}" in printed


@pytest.mark.parametrize(
    "wish, answer",
    [
        ("reference", "CPU tensors run on: reference (FLOWKERN_BACKEND=reference)"),
        ("fast", "CPU tensors run on: nothing: FLOWKERN_BACKEND: expected one of"),
    ],
)
def test_info_tells_what_the_environment_asks_for(wish, answer):
    environment = {**os.environ, "FLOWKERN_BACKEND": wish}
    done = subprocess.run([sys.executable, "-m", "flowkern", "info"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout


@pytest.mark.parametrize("arguments", [[], ["inform"]])
def test_an_unknown_command_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "info" in capsys.readouterr().err or not arguments


def test_demo_explains_its_options(capsys):
    with pytest.raises(SystemExit) as error:
        demo_main(["--help"])
    assert error.value.code == 0
    assert "--quick" in capsys.readouterr().out

"""`python -m flowkern check`: the self-test of an installation."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowkern import backends
from flowkern.__main__ import main
from flowkern.check.measure import candidates
from flowkern.ops._affine_coupling import native
from flowkern.ops._problem import all_problems

OPS = Path(backends.__file__).parent / "ops"
WITHOUT_CPU = os.environ.get("FLOWKERN_WITHOUT_CPU") == "1"


def wrong_forward(forward):
    return lambda *inputs: tuple(1.001 * output for output in forward(*inputs))


def wrong_in_one_element(forward):
    def kernel(*inputs):
        y, logabsdet = forward(*inputs)
        return y.index_put((torch.tensor(5), torch.tensor(1)), torch.tensor(torch.nan, dtype=y.dtype)), logabsdet

    return kernel


def raising(forward):
    def kernel(*inputs):
        raise RuntimeError("no such instruction")

    return kernel


FAULTS = {
    "results": ("forward", wrong_forward, "affine_coupling, forward, by cpu on cpu in float64: results by "),
    "one value": (
        "forward",
        wrong_in_one_element,
        "affine_coupling, inverse, by cpu on cpu in float32: results by inf",
    ),
    "gradients": ("backward", wrong_forward, "affine_coupling, inverse, by cpu on cpu in float64: results by "),
    "an exception": ("forward", raising, "affine_coupling, forward, by cpu on cpu in float32: RuntimeError: no such"),
}


def test_every_op_is_checked():
    named = {path.parent.name.removeprefix("_") for path in OPS.glob("_*/reference.py")}
    assert {problem.op for problem in all_problems()} == named | {"runge_kutta_error"}


@pytest.mark.parametrize("op", sorted({p.op for p in all_problems()} - {"probability_path"}))
def test_ops_with_an_inverse_are_checked_both_ways(op):
    directions = [problem.direction for problem in all_problems() if problem.op == op]
    assert directions == (["forward"] if op.startswith("runge_kutta") else ["forward", "inverse"])


@pytest.mark.parametrize("rich", [True, False])
def test_what_is_right_passes(rich, capsys, monkeypatch):
    if not rich:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "rich" else find(name, *a))
    assert main(["check"])
    printed = capsys.readouterr().out
    assert "Everything that was checked is right." in printed and "wrong" not in printed
    for name in backends.NAMES:
        reason = backends.unavailable(name)
        assert name in printed and (reason is None or f"{name} was not checked: {reason}" in printed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_named(fault, capsys, monkeypatch):
    if WITHOUT_CPU:
        pytest.skip("the CPU kernels were left out on purpose")
    kernel, plant, named = FAULTS[fault]
    monkeypatch.setattr(native, kernel, plant(getattr(native, kernel)))
    assert not main(["check"])
    wrong = capsys.readouterr().out.partition("Wrong:\n")[2]
    assert named in wrong and all(line.startswith("affine_coupling, ") for line in wrong.splitlines())


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_the_exit_status_tells(factor):
    code = f"""if True:
    import runpy, sys
    from flowkern.ops._affine_coupling import reference
    forward = reference.forward
    reference.forward = lambda x, *rest: tuple({factor} * y if x.dtype.itemsize < 8 else y for y in forward(x, *rest))
    sys.argv = ["flowkern", "check"]
    runpy.run_module("flowkern", run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (factor != 1.0), done.stdout + done.stderr


def test_a_gpu_is_checked_by_all_its_backends(monkeypatch):
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    found = candidates("cuda:0")
    for name in ("reference", "triton", "cuda"):
        assert (name, torch.float32) in found and (name, torch.float64) in found

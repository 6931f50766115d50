"""Which backend runs: chosen by context or environment, or the fastest; and that `cpu` is there."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch.profiler import profile

import flowkern
from flowkern import _library, backends
from tests.cases.coupling import AFFINE, AFFINES, TYPICAL

ROOT = Path(__file__).parents[1]
WITHOUT_CPU = os.environ.get("FLOWKERN_WITHOUT_CPU") == "1"
MISSING = [name for name in backends.NAMES if backends.unavailable(name) is not None]


@pytest.mark.parametrize("op", TYPICAL)
def test_cpu_kernels_are_there(op):
    """FLOWKERN_WITHOUT_CPU=1 says that the library was left out on purpose."""
    assert WITHOUT_CPU or backends.unavailable("cpu") is None, backends.unavailable("cpu")
    assert WITHOUT_CPU or "cpu" in _library.compiled(op)


@pytest.mark.parametrize("op", TYPICAL)
def test_the_chosen_backend_runs(backend, op):
    """Forward and backward: the dispatcher ops of `cpu` run if and only if it was chosen."""
    x, params = (t.requires_grad_() for t in TYPICAL[op].tensors())
    with profile() as profiler, flowkern.backend(backend):
        sum(t.sum() for t in TYPICAL[op](x, params)).backward()
    ran = {event.key for event in profiler.key_averages()}
    kernels = {f"flowkern::{op}", f"flowkern::{op}_backward"}
    assert kernels & ran == (kernels if backend == "cpu" else set())


def test_backward_keeps_the_backend_of_forward():
    x, params = (t.requires_grad_() for t in AFFINE.tensors())
    with flowkern.backend("reference"):
        y, logabsdet = AFFINE(x, params)
    with profile() as profiler:
        (y.sum() + logabsdet.sum()).backward()
    assert not any("flowkern::" in event.key for event in profiler.key_averages())


def test_blocks_nest_and_restore():
    automatic = backends.resolve("cpu")
    with flowkern.backend("reference"):
        with pytest.raises(KeyError), flowkern.backend("reference"):
            raise KeyError
        assert backends.resolve("cpu") == "reference"
    assert backends.resolve("cpu") == automatic


def test_choice_is_of_one_thread():
    seen = []
    with flowkern.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends._choice.name))
        thread.start()
        thread.join()
    assert seen == [None]


def test_unknown_name():
    with pytest.raises(ValueError, match="name: expected one of reference, cpu, .* got 'gpu'"):
        with flowkern.backend("gpu"):
            pass


def test_unavailable_choice_says_why():
    for name in MISSING:
        with pytest.raises(RuntimeError, match=f"^name: backend '{name}' cannot run") as error:
            with flowkern.backend(name):
                pass
        assert backends.unavailable(name) in str(error.value)


def test_tensors_on_another_device():
    x, params = torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, 2, device="meta")
    with flowkern.backend("reference"):
        assert AFFINES["exp"](x, params)[0].device.type == "meta"
    assert WITHOUT_CPU or _raises_on(x, params)


def _raises_on(x, params):
    with flowkern.backend("cpu"):
        with pytest.raises(RuntimeError, match="'cpu' was chosen.* x is on 'meta'"):
            AFFINES["exp"](x, params)
    return True


def test_automatic_choice_takes_the_fastest(monkeypatch):
    monkeypatch.setattr(backends, "_environment", None)
    assert backends.resolve("cpu") == ("reference" if WITHOUT_CPU else "cpu")


def test_fallback_warns_once_with_what_to_do(monkeypatch):
    monkeypatch.setattr(backends, "_environment", None)
    monkeypatch.setitem(_library._REASONS, "cpu", "this installation holds no cpu kernels: install g++")
    backends._warn_slow.cache_clear()
    with pytest.warns(UserWarning, match="slow reference.*install g\\+\\+"):
        assert backends.resolve("cpu") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.resolve("cpu") == "reference"
    with pytest.raises(RuntimeError, match="name: backend 'cpu' cannot run here: .*install g"):
        with flowkern.backend("cpu"):
            pass


def test_an_op_without_a_kernel_falls_back_alone(monkeypatch):
    monkeypatch.setattr(backends, "_environment", None)
    backends._warn_slow("cpu")
    assert backends.resolve("cpu", kernels=()) == "reference"
    if not WITHOUT_CPU:
        with flowkern.backend("cpu"), pytest.raises(RuntimeError, match="no kernel for this op"):
            backends.resolve("cpu", kernels=())


@pytest.mark.parametrize("compiler", [None, "false"])
def test_the_build_tells_that_there_is_no_compiler_and_goes_on(compiler, tmp_path):
    """`false` stands for a compiler that is too old: it accepts no program."""
    environment = {"PATH": str(tmp_path)} | ({"CXX": shutil.which(compiler)} if compiler else {})
    folders = ("--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("flowkern: the cpu kernels are not built: ") == 1
    assert "install g++ 11 or later" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("op", TYPICAL)
def test_half_precision_on_a_gpu_goes_to_the_kernels_that_read_it(op, monkeypatch):
    """Also where x alone or the conditioner's output alone is of half precision."""
    asked = []
    monkeypatch.setattr(backends, "_environment", None)
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    assert backends.resolve("cuda") == "cuda"
    assert backends.resolve("cuda", half=True) == "triton"
    assert backends.resolve("cuda", ("cuda",), half=True) == "cuda"
    assert backends.resolve("cpu", half=True) == "cpu"
    monkeypatch.setattr(backends, "resolve", lambda *call, **_: asked.append(call[2]) or "reference")
    x, params = TYPICAL[op].tensors(torch.float32)
    for tensors in ((x, params), (x.half(), params), (x, params.bfloat16())):
        TYPICAL[op](*tensors)
    assert asked == [False, True, True]


# Triton's share of the rate of a copy, as predicted from its compiled code: chunked, forward, float32.
TRITON_AFFINE = 0.88


def test_cuda_is_first_where_it_is_predicted_to_be_no_slower():
    """Triton's launches cost more."""
    predicted = json.loads((ROOT / "csrc/affine_coupling/predictions.json").read_text())
    shares = [row["share"] for name, row in predicted.items() if "exp, features neighbours" in name]
    assert len(shares) == 3 and min(shares) > TRITON_AFFINE - 0.05


def test_library_that_is_missing_or_does_not_load(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    told = (
        "this installation holds no cpu kernels; the wheels for Linux do, and with a C\\+\\+20 compiler .* pip install"
    )
    assert re.match(told, _library._load("cpu"))
    _library.path("cpu").write_bytes(b"not a library")
    assert _library._load("cpu").startswith("libflowkern_cpu.so does not load: ")


def test_triton_on_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in backends.unavailable("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with flowkern.backend("triton"):
        assert backends.resolve("cpu") == "triton"
    monkeypatch.setattr(backends, "_TRITON_INSTALLED", False)
    assert "pip install triton" in backends.unavailable("triton")


def in_process(choice, code):
    """Run code, after the usual imports, in a process with FLOWKERN_BACKEND = choice."""
    start = "import torch, flowkern\nfrom flowkern import backends\nX = torch.zeros(2, 3)\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start + code],
        env={**os.environ, "FLOWKERN_BACKEND": choice},
        capture_output=True,
        text=True,
    )


def test_environment_chooses():
    """Beaten only by a block; empty means automatic."""
    result = in_process(
        "reference",
        """
assert backends.resolve("cpu") == "reference"
with flowkern.backend("reference"):
    assert backends.resolve("cpu") == "reference"
backends._environment = "nonsense"
with flowkern.backend("reference"):
    assert backends.resolve("cpu") == "reference"
""",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("choice", ["gpu", *MISSING[:1]])
def test_environment_that_cannot_be_met(choice):
    """The import works, and the first op says what is wrong."""
    result = in_process(choice, "flowkern.ops.runge_kutta_stage(X, [X], torch.ones(1))")
    assert result.returncode == 1
    assert "FLOWKERN_BACKEND: " in result.stderr and repr(choice) in result.stderr


@pytest.mark.parametrize("wish", ["foo", "portable"])
def test_an_unknown_instruction_set_is_named(wish):
    code = "from flowkern import backends; print(backends.unavailable('cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"FLOWKERN_CPU": wish}, cwd=ROOT, capture_output=True, text=True
    )
    wanted = f"FLOWKERN_CPU: expected portable, avx2 or avx512, got {wish!r}"
    if _library.path("cpu").exists():
        assert done.stdout.strip() == (wanted if wish == "foo" else "None"), done.stderr


def test_calls_do_not_look_for_a_gpu_again(monkeypatch):
    """torch asks the driver each time, which takes longer than a small kernel."""
    backends.unavailable("cuda")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) or False)
    with flowkern.backend("reference"):
        AFFINES["exp"](torch.ones(3), torch.zeros(3, 2))
    for name in backends.NAMES:
        backends.unavailable(name)
    assert not asked

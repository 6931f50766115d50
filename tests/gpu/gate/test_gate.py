"""The GPU gate without a GPU: what it does when something fails, hangs, is missing or interrupted."""

import contextlib
import itertools
import json
import os
import sys
import types
import zipfile

import pytest
import torch

from flowkern.ops import _launch_parameters
from tests import cases
from tests.cases import coupling
from tests.gpu.gate import autotune, correctness, module, process, report, sanitizer, wheels
from tests.gpu.gate.gate import BACKENDS, Gate
from tests.gpu.gate.store import Store

ABOUT = {"dry run": True, "key": "a"}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path, dry_run=True)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "gate.json", ABOUT)


def test_results_are_kept_until_sources_change(store):
    store.add("limits", "copy", "", {"seconds": 1.0})
    store.add("limits", "launch", "", {"failures": ["it failed"]})
    again = Store(store.path, ABOUT)
    assert again.done("limits", "copy", "") and not again.done("limits", "copy", "other peers")
    assert not again.done("limits", "launch", "")
    other = Store(store.path, ABOUT | {"key": "b"})
    assert not other.done("limits", "copy", "")
    assert json.loads(store.path.with_name("gate-a.json").read_text())["parts"]["limits"]["copy"]


def test_an_item_runs_in_a_process_of_its_own(gate):
    assert process.run("limits", "matmul float32", gate, 100)["size"] == 64
    (failure,) = process.run("limits", "matmul nonsense", gate, 100)["failures"]
    assert failure.startswith("ended with code 1: KeyError: 'nonsense'")


def test_an_item_that_hangs(gate, monkeypatch):
    assert process.run("limits", "copy", gate, 0.05) is None
    monkeypatch.setattr(process, "SECONDS", 0.05)
    (failure,) = process.run("limits", "copy", gate, 100)["failures"]
    assert failure.startswith("ended after 0.05 s")


def test_a_wrong_kernel_is_a_failure(gate, monkeypatch):
    evaluate = coupling.evaluate

    def wrong(*arguments, backend, **options):
        result = evaluate(*arguments, backend=backend, **options)
        return result._replace(logabsdet=result.logabsdet + 1) if backend == "cpu" else result

    monkeypatch.setattr(Gate, "on", lambda *_: contextlib.nullcontext("cpu"))
    assert not correctness.run("cuda/affine_coupling/half precision", gate)["failures"]
    monkeypatch.setattr(coupling, "evaluate", wrong)
    result = correctness.run("cuda/affine_coupling/half precision", gate)
    assert len(result["failures"]) == result["checks"] == 2
    assert "logabsdet is wrong" in result["failures"][0]


@pytest.mark.parametrize("op", [op for op, (_, groups) in correctness.OPS.items() if "cases" in groups])
def test_ops_with_cases_of_their_own(gate, monkeypatch, op):
    """Both backends are checked, and results that are not the same twice are told."""
    assert {f"{backend}/{op}/cases" for backend in BACKENDS} <= {*correctness.names(gate, None)}
    monkeypatch.setattr(Gate, "on", lambda *_: contextlib.nullcontext("cpu"))
    result = correctness.run(f"cuda/{op}/cases", gate)
    assert result["checks"] >= 4 and not result["failures"]
    module = cases.modules()[op]
    seeds = itertools.count()
    monkeypatch.setattr(module, "results", lambda *_, **__: [torch.tensor(next(seeds))])
    failures = correctness.run(f"cuda/{op}/cases", gate)["failures"]
    assert len(failures) == result["checks"] and "differs from call to call" in failures[0]


def test_wheels(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer_a.py", "")
        wheel.writestr("peer_a-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: peer_a\nVersion: 1.0\n")
    monkeypatch.setattr(wheels, "PEERS", ("peer_a", "peer_b"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    missing = wheels.install(tmp_path, tmp_path / "site")
    assert missing == f"peer_b is missing: no wheel in {tmp_path.name}; it is left out of the comparison"
    assert "peer_a is missing: hand over wheels with --wheels" not in wheels.install(None, tmp_path / "site")
    (tmp_path / "site" / "peer_a.py").write_text("import nothing_of_that_name")
    assert "peer_a does not import: ModuleNotFoundError" in wheels.install(None, tmp_path / "site")


@pytest.mark.parametrize(
    "said, expected",
    [
        ("========= ERROR SUMMARY: 0 errors", []),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", []),
        ("========= Invalid read\n========= ERROR SUMMARY: 1 error", ["========= Invalid read"]),
        ("Segmentation fault", ["the tool printed no summary; see the log"]),
    ],
)
def test_what_the_sanitizer_says(said, expected, tmp_path):
    target = tmp_path / "result.json"
    assert sanitizer._judged(said, target)["failures"][-1] == "the cases did not run to their end"
    target.write_text(json.dumps({"checks": 3, "failures": []}))
    judged = sanitizer._judged(said, target)
    assert judged["failures"][: len(expected)] == expected and bool(judged["failures"]) == bool(expected)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tool(name, script): a program of that name, found before any other, that is this shell script."""

    def made(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return made


@pytest.mark.timeout(900)  # the emulation may have to be built
def test_the_cases_run_under_the_sanitizer(gate, tool):
    """A stand-in for it runs what it is given, the emulated kernels here, and finds nothing or something."""
    (gate.out / "logs").mkdir()
    run = 'test "$1 $2" = "--tool racecheck" && shift 2 && "$@"'
    tool("compute-sanitizer", f"{run} && echo '========= RACECHECK SUMMARY: 0 hazards displayed'")
    assert sanitizer.run("racecheck/cuda/runge_kutta_stage", gate) == {"checks": 4, "failures": []}
    tool("compute-sanitizer", f"{run}; echo '========= RACECHECK SUMMARY: 1 hazard displayed'")
    assert sanitizer.run("racecheck/cuda/runge_kutta_stage", gate)["failures"]


COUNTED = (
    'printed before\n"ID","Kernel Name","gpu__time_duration.sum","else"\n"","","us",""\n'
    '"0","forward_kernel","12.5","1"\n'
)


def test_hardware_counters_are_read(gate, tool):
    counters = module("counters")
    expected = {"Kernel Name": "forward_kernel", "gpu__time_duration.sum": "12.5 us"}
    assert counters.parsed(COUNTED) == [expected]
    assert counters.parsed("==ERROR== no permission") == []
    tool("ncu", f"cat <<'END'\n{COUNTED}END")
    assert counters.run("an op/flowkern", gate) == {"kernels": [expected]}
    tool("ncu", "echo '==ERROR== no permission'; exit 1")
    assert counters.run("an op/flowkern", gate) == {"failures": ["ncu saw no kernel; see the log"]}


def test_counters_are_of_the_tables_furthest_from_the_limit(gate):
    def table(ours, limit):
        rows = (("flowkern", ours), ("limit: copy", limit))
        return {"candidates": [{"name": name, "seconds": [seconds]} for name, seconds in rows]}

    speed = {f"op-{i}000": table(i, 1) for i in range(1, 7)} | {"op-1": table(99, 1)}
    names = module("counters").names(gate, {"speed": speed}.get)
    assert names[:2] == ["op-6000/flowkern", "op-6000/triton: flowkern"] and len(names) == 8


def test_tuned_parameters_are_used_on_that_gpu_alone(tmp_path, monkeypatch):
    path = tmp_path / "launch_parameters.json"
    rows = {"k": {"default": [512, 4], "chosen": [256, 8]}, "same": {"default": [1, 1], "chosen": [1, 1]}}
    monkeypatch.setattr(_launch_parameters, "PATH", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    path.write_text(json.dumps({"another GPU": {"k": [1, 1]}}))
    autotune.after(Gate(tmp_path, dry_run=False), {"item": {"kernels": rows}, "failed": {"failures": ["…"]}})
    assert json.loads(path.read_text()) == {"another GPU": {"k": [1, 1]}, "a GPU": {"k": [256, 8]}}
    tensor = types.SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    _launch_parameters._of_gpu.cache_clear()
    assert _launch_parameters.tuned("k", tensor, (512, 4)) == (256, 8)
    assert _launch_parameters.tuned("same", tensor, (1, 1)) == (1, 1)
    assert _launch_parameters.tuned("k", torch.zeros(1), (512, 4)) == (512, 4)
    _launch_parameters._of_gpu.cache_clear()


def test_nothing_is_tuned_in_what_is_shipped():
    """No GPU has been measured."""
    assert json.loads(_launch_parameters.PATH.read_text()) == {}


def test_report(tmp_path):
    """Times are shown of a run on a GPU, and never of a dry run."""
    timed = {"seconds": [1e-3], "back_to_back": [1e-3], "peak_bytes": 0, "ours": "flowkern"}
    table = {"title": "an op", "candidates": [{"name": "flowkern", **timed}, {"name": "limit: copy", **timed}]}
    for dry_run in (False, True):
        store = Store(tmp_path / f"{dry_run}.json", {"dry run": dry_run, "key": "a"})
        store.add("speed", "op", "", table)
        store.add("limits", "copy", "", {"bytes/s": 2e12})
        store.add("correctness", "op", "", {"checks": 7, "failures": ["y is wrong"]})
        text = report.write(store)
        assert "correctness, op: y is wrong" in text
        assert ("1 ms" in text, "2000 GB/s" in text, report.DRY in text) == (not dry_run, not dry_run, dry_run)

"""The GPU gate without a GPU: its order and budget, and what it does when something fails, dies or hangs."""

import contextlib
import heapq
import itertools
import json
import os
import sys
import tempfile
import time
import types

import pytest
import torch

from flowkern.ops import _launch_parameters
from tests import cases, tolerances
from tests.cases import coupling
from tests.gpu.gate import (
    PARTS,
    Item,
    Part,
    autotune,
    bundle,
    correctness,
    counters,
    drive,
    drivers,
    limits,
    module,
    problems,
    report,
    roofline,
    sanitizer,
    supervise,
)
from tests.gpu.gate.gate import BACKENDS, Gate
from tests.gpu.gate.log import Log
from tests.gpu.gate.stopwatch import Stopwatch


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "results.jsonl")


@pytest.fixture
def gate(tmp_path, log, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path.parent))
    return Gate(tmp_path, True, log)


# --- order and budget ----------------------------------------------------------------------------


def _end(part, begin, gate):
    """The second at which the part ends, if its items take what is expected, by the next free process each."""
    free = [begin + (drive.STARTUP if part.processes > 1 else 0)] * part.processes
    for item in module(part).items(gate):
        now = heapq.heappop(free)
        assert now + item.seconds <= part.end, f"{part.name}: {item.name} does not end in time"
        heapq.heappush(free, now + item.seconds)
    return max(free)


def test_every_part_ends_in_its_time(tmp_path):
    """Those of a run on a GPU; of the last part as much as there is time for."""
    end, on_gpu = drive.STARTUP, Gate(tmp_path, False)
    for part in PARTS[:-1]:
        end = _end(part, end, on_gpu)
    assert end <= PARTS[-2].end <= 560
    assert PARTS[-1].end + 6 <= 600
    assert [part.end for part in PARTS] == sorted(part.end for part in PARTS)


def test_nothing_that_spoils_timings_comes_before_them():
    names = [part.name for part in PARTS]
    for timed, after in itertools.product(("limits", "own", "variants", "libraries"), ("sanitizer", "correctness")):
        assert names.index(timed) < names.index(after)
    assert {part.name for part in PARTS if part.processes > 1} == {"smoke", "correctness"}


def test_both_backends_and_all_ops_are_timed_and_checked(tmp_path):
    on_gpu = Gate(tmp_path, False)
    for part, least in (("smoke", 18), ("own", 54), ("correctness", 60)):
        names = [item.name for item in module(next(p for p in PARTS if p.name == part)).items(on_gpu)]
        assert len(names) == len({*names}) >= least
        assert {name.split("/")[0] for name in names} >= {*BACKENDS}


def test_the_tables_that_are_asked_for_are_there(tmp_path):
    """At the sizes of a GPU, where nothing is made yet."""
    libraries, compiled = (module(part) for part in PARTS if part.name in ("libraries", "compiled"))
    names = {*libraries.tables.tables(Gate(tmp_path, False))}
    wanted = {f"{name}-{batch}" for name, batch in (*libraries.WANTED, *compiled.WANTED)}
    assert wanted <= names, wanted - names


def test_an_item_without_time_is_told(gate, log):
    ran = []
    part = Part("part", "", 10)
    items = [Item(str(n), 4, lambda n=n: ran.append(n) or {}) for n in range(3)]
    drive.run_part(part, items, gate, log, drive.MadeUpClock(0))
    assert ran == [0, 1] and log.ended() == 8
    assert [path.name for path in gate.out.iterdir()] == ["results.jsonl"]  # few files come back
    assert log.results()["part"]["2"] == {"skipped": "no time was left"}


# --- faults --------------------------------------------------------------------------------------


class TritonError(Exception):
    """Triton's errors are no RuntimeError."""


def test_whatever_one_item_raises_the_others_run(gate, log):
    def fail(error):
        raise error

    items = [Item(name, 1, lambda e=e: fail(e)) for name, e in (("a", TritonError("x")), ("b", MemoryError("y")))]
    drive.run_part(Part("part", "", 10), [*items, Item("c", 1, lambda: {"ran": 1})], gate, log, drive.MadeUpClock(0))
    assert log.failures() == [("part", "a", "TritonError: x"), ("part", "b", "MemoryError: y")]
    assert log.results()["part"]["c"] == {"ran": 1}


def test_a_process_that_lost_its_gpu_leaves_the_rest_to_another(gate, log):
    lost = types.SimpleNamespace(out=gate.out, dry_run=True, usable=lambda: False)
    items = [Item("bad", 1, lambda: {"failures": ["CUDA error"]}), Item("next", 1, dict)]
    with pytest.raises(SystemExit) as end:
        drive.run_part(Part("part", "", 10), items, lost, log, drive.MadeUpClock(0))
    assert end.value.code == drive.AGAIN
    drive.run_part(Part("part", "", 10), items, gate, log, drive.MadeUpClock(0))
    assert log.results()["part"] == {"bad": {"failures": ["CUDA error"]}, "next": {}}


# Begins two items, one for each process of it; the first dies or hangs in its item.
_PROCESS = """
import os, sys, time
from pathlib import Path
from tests.gpu.gate.log import Log
log, what = Log(Path(sys.argv[1])), sys.argv[2]
number = sum("began" in line for line in log.lines())
limit = time.time() + (0.2 if what == "hang" else 100)
log.add(part="part", item=str(number), process=str(os.getpid()), began=0, limit=limit)
if number == 0:
    time.sleep(100) if what == "hang" else os._exit(11)
log.add(part="part", item=str(number), process=str(os.getpid()), ended=1, result={})
"""


@pytest.mark.parametrize("what, told", [("die", "ended its process with the code 11"), ("hang", "hung")])
def test_a_process_that_dies_or_hangs_is_told_and_replaced(log, what, told):
    command = [sys.executable, "-c", _PROCESS, str(log.path), what]
    environment = os.environ | {"PYTHONPATH": str(drivers.ROOT)}
    assert supervise.supervise([command], log.path.parent, time.time() + 60, environment, session=True)
    assert log.results()["part"] == {"0": {"failures": [told]}, "1": {}}


def test_the_time_ends_every_process(log):
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    start = time.time()
    assert not supervise.supervise([command], log.path.parent, start + 0.2)
    assert time.time() - start < 20


# --- checks --------------------------------------------------------------------------------------


def test_a_wrong_kernel_is_a_failure_and_the_ratio_is_kept(gate, monkeypatch):
    evaluate = coupling.evaluate

    def wrong(*arguments, backend, **options):
        result = evaluate(*arguments, backend=backend, **options)
        return result._replace(logabsdet=result.logabsdet + 1) if backend == "cpu" else result

    monkeypatch.setattr(Gate, "on", lambda *_: contextlib.nullcontext("cpu"))
    check = f"cuda/{[*coupling.NAMED][0]}/half precision/0"
    right = correctness.run(check, gate)
    assert not right["failures"] and all(0 < ratio <= 1 for ratio in right["error/allowed"])
    monkeypatch.setattr(coupling, "evaluate", wrong)
    result = correctness.run(check, gate)
    assert len(result["failures"]) == result["checks"] == len(result["error/allowed"]) == 2
    assert "logabsdet is wrong" in result["failures"][0] and min(result["error/allowed"]) > 1
    assert sum("check" in line for line in gate.log.lines()) == 4


@pytest.mark.parametrize("op", [op for op, (_, groups) in correctness.OPS.items() if "cases" in groups])
def test_ops_with_cases_of_their_own(gate, monkeypatch, op):
    """Both backends are checked, and results that are not the same twice are told."""
    names = {item.name for item in correctness.items(gate)}
    assert {f"{backend}/{op}/cases/0" for backend in BACKENDS} <= names
    monkeypatch.setattr(Gate, "on", lambda *_: contextlib.nullcontext("cpu"))
    result = correctness.run(f"cuda/{op}/cases/0", gate)
    assert result["checks"] >= 4 and not result["failures"] and max(result["error/allowed"]) > 0
    seeds = itertools.count()
    monkeypatch.setattr(cases.modules()[op], "results", lambda *_, **__: [torch.tensor(next(seeds))])
    failures = correctness.run(f"cuda/{op}/cases/0", gate)["failures"]
    assert len(failures) == result["checks"] and "differs from call to call" in failures[0]


@pytest.mark.parametrize("op", correctness.OPS)
def test_the_smoke_test_has_an_odd_and_a_large_case_of_each_dtype_and_direction(tmp_path, op):
    for checks in correctness.MODULES[op].smoke(Gate(tmp_path, False)):
        assert [check.dtype for check in checks] == ["float32", "float64"] * 2
        assert checks[0].case != checks[2].case and checks[0].directed == checks[3].directed


def test_ratios_are_of_what_is_compared_inside():
    with tolerances.recorded() as found:
        tolerances.assert_within(1.0, 4, "x")
        with pytest.raises(AssertionError, match="x is wrong by 8 units, at most 4"):
            tolerances.assert_within(8.0, 4, "x")
    tolerances.assert_within(1.0, 4, "x")
    assert found == [0.25, 2.0]


# --- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, expected",
    [
        ("========= ERROR SUMMARY: 0 errors", []),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", []),
        ("========= Invalid read\n========= ERROR SUMMARY: 1 error", ["========= Invalid read"]),
        ("Segmentation fault", ["the tool printed no summary"]),
    ],
)
def test_what_the_sanitizer_says(said, expected):
    assert sanitizer.judged(said, 0)[-1] == "no call ran to its end"
    judged = sanitizer.judged(said, 3)
    assert judged[: len(expected)] == expected and bool(judged) == bool(expected)


COUNTED = (
    'printed before\n"ID","Kernel Name","gpu__time_duration.sum","else"\n"","","us",""\n'
    '"0","forward_kernel","12.5","1"\n'
)


def test_hardware_counters_are_read():
    expected = {"Kernel Name": "forward_kernel", "gpu__time_duration.sum": "12.5 us"}
    assert counters.parsed(COUNTED) == [expected]
    assert counters.parsed("==ERROR== no permission") == []


@pytest.mark.timeout(900)  # the emulation may have to be built
def test_recorded_calls_run_without_python(tmp_path, emulated):
    """Of every op; the large ones with random numbers. A file that is cut ends the driver with a word."""
    found, seen = problems.small(), {*()}
    some = [p for p in found if p.op not in seen and not seen.add(p.op)]
    assert {p.op for p in problems.large(drivers.DRY)} == {
        "affine_coupling", "rational_quadratic_spline", "masked_autoregressive", "neural_ode"
    }  # fmt: skip
    first = some[0]._replace(name="random", tensors=[(*where, None) for *where, _ in some[0].tensors])
    path = tmp_path / "some.problems"
    problems.write([*some, first], path)
    done = drivers.run(drivers._emulated(), path)
    assert done.returncode == 0, done.stderr
    assert {*drivers.timed(done.stdout)} == {"random", *(p.name for p in some)} and len(some) == len(correctness.OPS)
    path.write_bytes(path.read_bytes()[:-1000])
    assert drivers.run(drivers._emulated(), path).stderr == "driver: the file ends too early\n"


def test_a_slow_call_is_timed_once(gate):
    calls = []
    assert len(Stopwatch(gate).samples(lambda: calls.append(1), 0.0)) == 1 and len(calls) == 3
    assert len(Stopwatch(gate).samples(lambda: None, 10.0, most=4)) == 4


def test_tuned_parameters_are_written_for_that_gpu_alone(tmp_path, monkeypatch):
    path = tmp_path / "launch_parameters.json"
    rows = {"k": {"default": [512, 4], "chosen": [256, 8]}, "same": {"default": [1, 1], "chosen": [1, 1]}}
    monkeypatch.setattr(_launch_parameters, "PATH", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    path.write_text(json.dumps({"another GPU": {"k": [1, 1]}}))
    autotune._write(rows, Gate(tmp_path, dry_run=False))
    assert json.loads(path.read_text()) == {"another GPU": {"k": [1, 1]}, "a GPU": {"k": [256, 8]}}
    tensor = types.SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    _launch_parameters._of_gpu.cache_clear()
    assert _launch_parameters.tuned("k", tensor, (512, 4)) == (256, 8)
    assert _launch_parameters.tuned("same", tensor, (1, 1)) == (1, 1)
    assert _launch_parameters.tuned("k", torch.zeros(1), (512, 4)) == (512, 4)
    _launch_parameters._of_gpu.cache_clear()


def test_nothing_is_tuned_in_what_is_shipped():
    """No GPU has been measured."""
    shipped = _launch_parameters.Path(_launch_parameters.__file__).with_name("launch_parameters.json")
    assert json.loads(shipped.read_text()) == {}


# --- the bundle and the report -------------------------------------------------------------------


def test_a_library_of_other_sources_is_told(gate, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "OUT", tmp_path / "build" / "gpu-bundle")
    bundle.OUT.mkdir(parents=True)
    bundle.script()
    assert "exec python3 -m tests.gpu.gate" in (bundle.OUT / "run.sh").read_text()
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert not limits._libraries(gate)["failures"]
    monkeypatch.setattr(limits, "digest", lambda *_: "other")
    assert limits._libraries(gate)["failures"] == ["the carried libraries were built from other sources"]


def test_a_bundle_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "OUT", tmp_path)
    assert 2**20 < bundle.check_size() < bundle.MOST / 2
    (tmp_path / "driver").write_bytes(bytes(bundle.MOST))
    with pytest.raises(RuntimeError, match="MiB, more than 60"):
        bundle.check_size()


TIMED = {
    "op": "affine_coupling", "name": "forward, chunked", "backend": "cuda", "seconds": 5e-4, "samples": [5e-4],
    "bytes": 1e9, "flops": 1e9, "predicted": "forward, exp, chunked", "bytes/s": 2e12, "FLOP/s": 2e12,
}  # fmt: skip


def test_the_share_of_the_bound_stands_beside_the_predicted_one():
    predictions = {"affine_coupling": {"forward, exp, chunked": {"share": 0.54, "limit": "instructions"}}}
    found = roofline.measured(TIMED, copy=4e12, matmul=5e13, predictions=predictions)
    assert (found["share"], found["memory"], found["predicted"]) == (pytest.approx(0.5), True, 0.54)
    assert roofline.measured(TIMED | {"backend": "triton"}, 4e12, 5e13, predictions)["predicted"] is None
    assert roofline.measured(TIMED | {"flops": 1e12}, 4e12, 5e13, {})["memory"] is False


def test_report(log):
    """Times are shown of a run on a GPU, and never of a dry run."""
    for dry_run in (False, True):
        log.path.unlink(missing_ok=True)
        log.add(about={"dry run": dry_run, "GPU": "a GPU"})
        log.add(part="limits", item="copy", ended=1, result={"bytes/s": 4e12})
        log.add(part="limits", item="matmul float32", ended=1, result={"FLOP/s": 5e13, "size": 8192})
        log.add(part="own", item="cuda/affine_coupling/forward, chunked", ended=2, result=TIMED)
        log.add(part="correctness", item="op", ended=3, result={"failures": ["y is <wrong>"]})
        log.add(part="libraries", item="odd", ended=3, result={"candidates": "no list"})
        report.write(log)
        page = log.path.with_name("report.html").read_text()
        assert "correctness, op: y is &lt;wrong&gt;" in page and "wrong: correctness" in report.text(log)
        assert ("50% of copy" in page, "<svg" in page, "4000 GB/s" in page, report.DRY in page) == (
            *[not dry_run] * 3,
            dry_run,
        )

"""FLOWKERN_TRACE=folder writes the calls of ops, and `python -m bench --trace folder` times them again."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowkern.ops._function import Rule

ROOT = Path(__file__).parents[1]
# Every op in each direction, with and without gradients, each twice; the numbers of no tensor may be in the trace.
PROGRAM = """
import torch
from flowkern import ops
from flowkern.ops._problem import all_problems

for problem in all_problems():
    for gradient in (False, True):
        leaves = [torch.full_like(t, 0.123456789).requires_grad_(gradient) for t in problem.tensors]
        for _ in range(2):
            problem.call(*leaves)
with torch.no_grad():
    context = ops.ContextTerm(torch.randn(5, 2), torch.randn(4, 2))
    layers = [ops.MaskedLayer(torch.randn(4, 3), context=context), ops.MaskedLayer(torch.randn(6, 4))]
    ops.masked_autoregressive(torch.randn(5, 3), layers, ops.Degrees([1, 2, 3], [[1, 2, 1, 2]]), ops.AffineElement())
"""


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    run("-c", PROGRAM, FLOWKERN_TRACE=str(folder))
    return folder


@pytest.fixture(scope="module")
def calls(folder):
    (path,) = folder.glob("trace-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trace_has_every_op_with_shapes_strides_dtypes_options_and_counts(calls):
    ops = {"affine_coupling", "flow_program", "masked_autoregressive", "neural_ode", "probability_path"}
    assert {call["op"] for call in calls} == ops | {
        "rational_quadratic_spline", "runge_kutta_error", "runge_kutta_stage"
    }  # fmt: skip
    spline = next(call for call in calls if call["op"] == "rational_quadratic_spline")
    x, params, index, bound = spline["tensors"]
    assert spline["calls"] == 2 and -3.0 in spline["options"] and bound is None
    assert x["shape"] == [37, 6] and params["stride"] == [69, 23, 1] and params["dtype"] == "float64"
    assert index["values"] == [0, 2, 4]
    assert {call["tensors"][0]["gradient"] for call in calls} == {False, True}
    assert any(call["method"] == "with_terms" for call in calls)


def test_a_trace_holds_no_numbers_of_the_users_tensors(folder):
    (path,) = folder.glob("trace-*.jsonl")
    of_times = [call for call in map(json.loads, path.read_text().splitlines()) if call["op"] == "neural_ode"]
    for call in of_times:  # where intervals start and how long they are describes the solve
        call["tensors"][1:3] = []
    others = [line for line in path.read_text().splitlines() if '"neural_ode"' not in line]
    assert of_times and not re.search(r"0\.1234567", json.dumps(of_times) + "".join(others))


def test_the_benchmark_times_the_calls_of_a_trace_beside_the_reference(folder, calls):
    report = run("-m", "bench", "--trace", str(folder), "--run", "quick")
    with open(folder / "replay.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["table"] for row in rows}) == len(calls)
    refused = {row["refused"] for row in rows if row["refused"]}
    assert all("with_terms" in text or "terms" in text for text in refused), refused
    assert all(float(row["error"]) <= float(row["allowed"]) for row in rows if not row["refused"])
    assert {row["dtype"] for row in rows} == {"float64", "float32"} and "| 2 |" in report


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_variable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AssertionError, match="FLOWKERN_TRACE: expected a folder that can be written"):
        run("-c", "import flowkern", FLOWKERN_TRACE=str(tmp_path / "file" / "folder"))


def test_a_fork_has_a_file_of_its_own_and_the_folder_is_that_of_the_start(tmp_path):
    program = f"""
import os, torch
from flowkern import ops
def call(rows): ops.affine_coupling(torch.randn(rows, 3), torch.randn(rows, 3, 2))
torch.set_num_threads(1)
call(2)
os.chdir({str(tmp_path)!r})
child = os.fork()
call(3 if child else 4)
child and os.waitpid(child, 0)
"""
    folder = Path(os.path.relpath(tmp_path / "trace", ROOT))
    run("-c", program, FLOWKERN_TRACE=str(folder))
    traces = [list(map(json.loads, path.read_text().splitlines())) for path in (tmp_path / "trace").iterdir()]
    assert sorted([call["tensors"][0]["shape"][0] for call in calls] for calls in traces) == [[2, 3], [4]]


def test_without_the_variable_the_ops_run_as_they_are():
    assert "FLOWKERN_TRACE" in os.environ or not hasattr(Rule.apply, "__wrapped__")


def test_every_committed_row_has_the_percentiles_of_its_samples():
    paths = sorted((ROOT / "bench" / "results").glob("*-*.csv"))
    assert paths
    for path in paths:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                samples = sorted(float(second) for second in row["seconds"].split())
                assert row["refused"] or float(row["p50"]) == samples[len(samples) // 2] or len(samples) % 2 == 0
                assert row["refused"] or samples[0] <= float(row["p20"]) <= float(row["p80"]) <= samples[-1]
                assert all(row[name] for name in ("kernel", "mode", "shape", "dtype", "provider", "machine"))
                assert all(row[name] for name in ("versions", "revision", "date", "compared_with", "table"))


def test_the_pages_of_results_are_those_of_the_files():
    program = """
from pathlib import Path
from bench import records, report
for path in report.RESULTS.glob("*-*.csv"):
    page = path.with_suffix(".md").read_text()
    assert report.summarise(path).read_text() == page, path
"""
    run("-c", program)

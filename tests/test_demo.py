"""The demo: its likelihood is a right one, and its page tells what was measured."""

import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from rich.console import Console

import flowkern
from demo import (
    autoregressive,
    continuous,
    cost,
    digits,
    memory,
    posterior,
    run,
    speed,
    spline_flow,
    tables,
)
from demo.progress import messages_to
from demo.settings import QUICK
from flowkern.flows import CNF
from flowkern.report import timing

TINY = dataclasses.replace(
    QUICK, layers=2, hidden_features=16, batch=32, steps=4, evaluate_every=2, rounds=2,
    sample_seconds=0.0, maf_layers=2, maf_hidden=80, maf_steps=2, cost_features=(4, 8),
    cost_peer_features=4, cost_rounds=2, moons_steps=3, moons_batch=32, cnf_steps=2,
    matching_steps=2, memory_steps=(4, 64), memory_peer_steps=4, posterior_steps=30, profile_seconds=0.2,
)  # fmt: skip


def test_to_logits_has_the_jacobian_of_autograd():
    levels = torch.randint(17, (digits.FEATURES,)).double()
    noise = torch.rand(digits.FEATURES, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: digits.to_logits(x, noise)[0])(levels)
    torch.testing.assert_close(digits.to_logits(levels, noise)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_to_levels_undoes_to_logits():
    levels = torch.arange(17.0).repeat_interleave(3)
    noise = torch.tensor([0.01, 0.5, 0.99]).repeat(17)
    assert torch.equal(digits.to_levels(digits.to_logits(levels, noise)[0]), levels)


def test_bits_per_dim_of_the_uniform_distribution_is_log2_of_the_levels():
    levels = torch.randint(17, (5, digits.FEATURES)).double()
    _, logabsdet = digits.to_logits(levels, torch.rand_like(levels))
    log_prob = -digits.FEATURES * math.log(17) - logabsdet
    bits = digits.bits_per_dim(log_prob, logabsdet)
    torch.testing.assert_close(bits, torch.full_like(bits, digits.UNIFORM_BITS))


def test_load_splits_once_and_keeps_classes_with_their_digits():
    data = digits.load()
    assert len(data.train) == len(data.train_classes) == 1500
    assert len(data.held_out) == len(data.held_out_classes) == 297
    assert data.train.min() == 0 and data.train.max() == 16
    assert torch.equal(data.held_out_classes.sum(-1), torch.ones(297))
    assert torch.equal(digits.load().held_out, data.held_out)


def test_interleaved_visits_every_call_in_every_round_and_turns_round():
    visits = []
    calls = {name: lambda name=name: visits.append(name) for name in "ab"}
    timings = timing.interleaved(calls, rounds=2, sample_seconds=0.0)
    assert visits[-4:] == ["a", "b", "b", "a"]
    assert [len(t.seconds) for t in timings.values()] == [2, 2]


def test_interleaved_ends_after_the_round_in_which_its_time_is_over():
    rounds = []
    timings = timing.interleaved(
        {"a": lambda: None}, rounds=9, sample_seconds=0.0, seconds=0.0, on_round=lambda: rounds.append(1)
    )
    assert len(rounds) == len(timings["a"].seconds) == 1


def test_speedup_is_taken_round_by_round():
    ours, theirs = timing.Timing([1.0, 2.0, 4.0]), timing.Timing([2.0, 6.0, 8.0])
    assert ours.speedups_over(theirs) == [2.0, 3.0, 2.0]
    assert ours.speedup_over(theirs) == 2.0
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert timing.quartiles([1.0]) == (1.0, 1.0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A tiny run of the whole demo: its folder, what it printed, its results.json."""
    folder, out = tmp_path_factory.mktemp("report"), io.StringIO()
    run.run(TINY, folder, Console(file=out, width=100))
    return folder, out.getvalue(), json.loads((folder / "results.json").read_text())


def test_both_runs_learn_the_same(demo):
    results = demo[2]
    plain, accelerated = results["plain_curve"], results["accelerated_curve"]
    assert len(plain["bits"]) == len(plain["seconds"]) == TINY.steps
    assert plain["held_out_steps"] == accelerated["held_out_steps"] == [2, 4]
    assert accelerated["bits"] == pytest.approx(plain["bits"], rel=1e-4)
    assert accelerated["held_out_bits"] == pytest.approx(plain["held_out_bits"], rel=1e-4)


def test_plain_and_accelerated_agree_up_to_rounding(demo):
    (_, *log_prob), (_, *samples) = demo[2]["agreement"]
    assert max(log_prob) < 1e-3  # of about 150 nats
    assert max(samples) < 1e-3


def test_autoregressive_flows_give_the_same_samples_and_log_dets(demo):
    rows = demo[2]["maf_agreement"]
    assert [what.split(",")[0] for what, *_ in rows] == ["MAF of nflows"] * 2 + ["MAF of zuko"] * 2
    for _, *distances in rows:
        assert max(distances) < 1e-3
    assert all(math.isfinite(bits) for bits in demo[2]["maf_bits"])


def test_accelerate_takes_every_layer_of_the_autoregressive_flows():
    for flow in autoregressive.build(TINY, seed=0):
        found = flowkern.explain(flowkern.accelerate(flow))
        kinds = [layer.kind for layer in found.replaced]
        assert sum("MaskedA" in kind for kind in kinds) == TINY.maf_layers


def test_cost_is_timed_at_every_size_and_the_peer_as_far_as_asked(demo):
    small, large = demo[2]["costs"]
    assert (small["features"], large["features"]) == TINY.cost_features
    assert small["timings"].keys() - large["timings"].keys() == {"eager inverse"}
    assert len(large["timings"]["flowkern inverse"]["seconds"]) == TINY.cost_rounds


def test_cost_ratio_is_inverse_over_forward():
    timings = {"flowkern forward": timing.Timing([1.0, 2.0]), "eager forward": timing.Timing([1.0])}
    timings["flowkern inverse"] = timing.Timing([3.0, 6.0])
    assert cost.Cost(8, timings).ratio("flowkern") == 3.0
    assert cost.Cost(8, timings).ratio("eager") is None


def test_times_taken_beside_other_programs_are_called_no_measurement():
    threads = torch.get_num_threads()
    for busy, told in ((0.5 * threads, True), (0.9 * threads, False)):
        timings = {"eager": timing.Timing([1.0], [busy]), "flowkern": timing.Timing([0.5], [0.5 * busy])}
        notes = " ".join(tables.speed([speed.Work("sampling", 10, timings)]).notes)
        assert ("no measurement" in notes) == told


def test_torchdiffeq_and_flowkern_solve_the_same_flow(demo):
    """Its untrained field is zero: random weights say more."""
    assert demo[2]["ode_gap"] < 1e-5
    assert [work["title"] for work in demo[2]["ode_works"]] == ["training step", "log_prob", "sampling"]
    assert all(math.isfinite(nats) for nats in demo[2]["ode_nats"])
    torch.manual_seed(0)
    flow, x = CNF(2, steps=continuous.STEPS).double(), torch.randn(9, 2).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    results = []
    for way in (continuous.Torchdiffeq(flow), continuous.Flowkern(flow)):
        log_prob = way.log_prob(x)
        results.append([log_prob, *torch.autograd.grad(log_prob.sum(), list(way.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_errors_of_the_solvers_fall_with_their_order(demo):
    orders = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4, "rk4_classic": 4, "dopri5": 5}
    found = {accuracy["method"]: accuracy for accuracy in demo[2]["accuracies"]}
    assert found.keys() == orders.keys()
    for method, order in orders.items():
        for errors in (found[method]["state"], found[method]["logabsdet"]):
            assert math.log2(errors[4] / errors[5]) > order - 0.2  # of 16 and 32 steps


def test_memory_of_the_gradient(demo):
    """Ours is a small part of torchdiffeq's: a state per step, less with checkpoints, none by the adjoint."""
    first, *_, last = (found["peaks"] for found in demo[2]["memories"])
    assert "torchdiffeq" not in last and max(first[way] for way in memory.WAYS) < first["torchdiffeq"] / 10
    states = 60 * memory.BATCH * 2 * 4
    assert last["discrete"] - first["discrete"] == pytest.approx(states, rel=0.02)
    assert last["checkpoints"] < last["discrete"] - states / 2
    assert last["adjoint"] == first["adjoint"]


def test_posterior_runs_learn_the_same_and_stay_above_the_exact_posterior(demo):
    plain, *others = demo[2]["posterior_runs"]
    assert len(plain["nats"]) == 2 and plain["nats"][-1] < plain["nats"][0]
    for other in others:
        assert other["nats"] == pytest.approx(plain["nats"], rel=1e-3)
    assert demo[2]["posterior_best"] < min(plain["nats"])
    assert demo[2]["posterior_profile"]["accelerated"]


def test_best_nats_are_those_of_the_joint_density():
    """log p(θ | x) = log p(θ) + log p(x | θ) − log p(x), each a normal density."""
    theta, x = posterior.simulations(500, seed=4)
    mixing, noise = posterior._mixing(), posterior.NOISE
    normal = torch.distributions.MultivariateNormal
    one, unit = torch.eye(posterior.OBSERVATIONS), torch.eye(posterior.PARAMETERS)
    wanted = (
        normal(torch.zeros(posterior.PARAMETERS), unit).log_prob(theta)
        + normal(theta @ mixing.T, noise**2 * one).log_prob(x)
        - normal(torch.zeros(posterior.OBSERVATIONS), mixing @ mixing.T + noise**2 * one).log_prob(x)
    )
    assert posterior.best_nats(theta, x) == pytest.approx(-wanted.mean().item(), rel=1e-4)


def test_page_is_self_contained_and_complete(demo):
    folder, _, results = demo
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "{{" not in text
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert text.count("data:image/png;base64,") == 11
    assert text.count("data:image/gif;base64,") == 1
    for title in (
        "Digits", "Training", "The same numbers", "Speed", "Autoregressive flows",
        "The same samples", "Cost against the number of features", "Posterior estimation", "Two moons",
        "Continuous flows",
        "From noise to data",
        "torchdiffeq and flowkern", "Memory of the gradient", "How accurate the solvers are", "Machine",
    ):  # fmt: skip
        assert f"<h2>{title}" in text
    assert results["machine"]["Processor"] in text and results["versions"]["torch"] in text


def test_terminal_shows_the_tables_and_what_was_left_out(demo):
    folder, printed, _ = demo
    for words in (
        "replaced 2 layers",
        "torch.compile is left out",
        "Largest differences",
        "vs eager",
        "microseconds per sample",
        "Cost against the number of features",
        "A continuous flow, by torchdiffeq and by flowkern",
        "Memory of the gradient",
        "The exact posterior has",
    ):
        assert words in printed
    assert "index.html" in printed


def test_what_cannot_be_timed_is_named_with_its_reason(monkeypatch):
    def no_compiler(function):
        def fail(*arguments):
            raise RuntimeError("no compiler\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    settings = dataclasses.replace(TINY, compile=True)
    torch.manual_seed(0)
    flow = spline_flow.build(settings)
    works = speed.measure(flow, digits.load(), settings, contextlib.nullcontext, lambda: None)
    assert all(w.refused == {"torch.compile": "RuntimeError: no compiler"} for w in works)
    table = tables.speed(works)
    assert table.columns == ("", "eager", "flowkern", "vs eager")
    assert any("torch.compile could not be timed: RuntimeError: no compiler" in n for n in table.notes)


def test_without_kernels_the_demo_says_that_nothing_is_accelerated(tmp_path):
    out = io.StringIO()
    with flowkern.backend("reference"):
        run.run(dataclasses.replace(TINY, layers=1, memory_steps=(4,)), tmp_path, Console(file=out, width=200))
    assert "nothing below is accelerated" in out.getvalue()
    assert "show no acceleration" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_messages_of_torch_compile_go_to_a_file(tmp_path, capfd):
    with messages_to(tmp_path / "log"):
        logging.getLogger("torch._dynamo").warning("graph break")
        warnings.warn("slow", stacklevel=1)
    logged = (tmp_path / "log").read_text()
    assert "graph break" in logged and "UserWarning: slow" in logged
    assert "graph break" not in capfd.readouterr().err


def test_measuring_memory_says_nothing():
    """In a process of its own, as the profiler reads its settings once."""
    code = "import torch; from flowkern.report.memory import peak_memory; print(peak_memory(lambda: torch.empty(250)))"
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1000\n", "")

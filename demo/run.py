"""Runs the demo from training to the page, and tells what it does meanwhile."""

import contextlib
import copy
import dataclasses
import itertools
import json

import torch
from rich.console import Console

import flowkern
from demo import (
    autoregressive,
    continuous,
    cost,
    digits,
    figures,
    memory,
    moons,
    page,
    posterior,
    posterior_chart,
    speed,
    spline_flow,
    tables,
)
from demo.agreement import agreement
from demo.cost_chart import chart as cost_chart
from demo.progress import bar, bars, messages_to
from flowkern import backends
from flowkern.report.machine import machine, versions

SEED = 0


@dataclasses.dataclass
class Results:
    """All that the tables, the pictures and the page are made from."""

    backend: str
    plain_curve: spline_flow.Curve
    accelerated_curve: spline_flow.Curve
    control_curve: spline_flow.Curve
    agreement: list
    works: list
    maf_bits: list
    maf_agreement: list
    maf_works: list
    costs: list
    ode_nats: list
    ode_works: list
    ode_gap: float
    accuracies: list
    memories: list
    posterior_runs: list
    posterior_best: float
    posterior_profile: dict
    machine: dict
    versions: dict


def run(settings, folder, console=None):
    """Train, compare, time; then print the tables and write `folder`/index.html."""
    console = console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    backend = _announce_backend(console)
    data = digits.load()
    plain, accelerated, curves = _train_all(data, settings, console)
    rows = agreement(plain, _accelerated(plain), data)
    works = _measure(plain, data, settings, console, folder)
    mafs = _autoregressive(data, settings, console)
    costs = _cost(settings, console)
    flows, *odes = _continuous(settings, console)
    posteriors = _posterior(settings, console)
    results = Results(
        backend, *curves, rows, works, *mafs, costs, *odes, *posteriors, machine(),
        versions("nflows", "zuko", "torchdiffeq", "scikit-learn"),
    )  # fmt: skip
    pictures = _pictures(accelerated, data, results, settings, console, folder)
    with bar(console, "Drawing paths", figures.FRAMES) as advance:
        pictures.update(figures.continuous(flows, results, folder, advance))
    _print_tables(results, console)
    (folder / "results.json").write_text(json.dumps(dataclasses.asdict(results), indent=1))
    path = page.write(folder / "index.html", results, pictures, settings)
    console.print(f"\nThe page with all pictures: [bold]{path}[/bold]")


def _announce_backend(console):
    backend = backends.resolve("cpu")
    console.print(f"flowkern {flowkern.__version__}, backend [bold]{backend}[/bold]")
    if backend == "reference":
        console.print(
            "[yellow]The fused kernels do not run here, so nothing below is accelerated: "
            f"{backends.unavailable('cpu') or 'FLOWKERN_BACKEND asks for the reference'}.[/yellow]"
        )
    return backend


def _train_all(data, settings, console):
    """The flow trained plain and accelerated from the same seed, and the Curves of three runs.

    The third run is a control: it tells how far apart two runs get that differ by rounding alone.
    """
    torch.manual_seed(SEED)
    plain = spline_flow.build(settings)
    accelerated = _accelerated(plain)
    replaced = len(flowkern.explain(accelerated).replaced)
    console.print(f"flowkern.accelerate(flow) replaced {replaced} layers of the nflows model.")
    list(spline_flow.training(copy.deepcopy(plain), data, settings.warm_up(), SEED))
    flows = {
        "Training, plain nflows": plain,
        "Training, accelerated": accelerated,
        "Training, control": spline_flow.nudged(accelerated),
    }
    with bars(console, flows, settings.steps) as advances:
        curves = _take_turns(flows.values(), advances, data, settings)
    return plain, accelerated, curves


def _take_turns(flows, advances, data, settings):
    """Train all flows, a few steps of each in turn, so that none has the machine at its best."""
    runs = [spline_flow.training(flow, data, settings, SEED) for flow in flows]
    curves = [None for _ in runs]
    for _ in range(0, settings.steps, settings.evaluate_every):
        for i, run in enumerate(runs):
            for curves[i] in itertools.islice(run, settings.evaluate_every):
                advances[i](f"{curves[i].bits[-1]:.3f} bits/dim, {curves[i].seconds[-1]:.1f} s")
    return curves


def _accelerated(flow):
    return flowkern.accelerate(copy.deepcopy(flow))


def _measure(trained, data, settings, console, folder):
    if not settings.compile:
        console.print("torch.compile is left out: compiling takes minutes (run without --quick).")

    log = folder / "torch_compile.log"
    log.unlink(missing_ok=True)

    @contextlib.contextmanager
    def on_compile(title):
        console.print(f"torch.compile compiles the {title}: tens of seconds, messages in {log}")
        with messages_to(log):
            yield

    with bar(console, "Timing", speed.KINDS * settings.rounds) as advance:
        return speed.measure(trained, data, settings, on_compile, advance)


def _autoregressive(data, settings, console):
    """Held-out bits, agreement and speed of sampling of the autoregressive flows."""
    flows = autoregressive.build(settings, SEED)
    with bars(console, [f"Training, {f.title}" for f in flows], settings.maf_steps) as advances:
        bits = autoregressive.train(flows, data, settings, SEED, advances)
    rows = autoregressive.agreements(flows)
    with bar(console, "Timing, MAFs", len(flows) * settings.rounds) as advance:
        works = autoregressive.measure(flows, settings, advance)
    return bits, rows, works


def _cost(settings, console):
    with bar(console, "Cost against D", len(settings.cost_features)) as advance:
        return cost.measure(settings, advance)


def _continuous(settings, console):
    """Two continuous flows, their held-out nats, speed, agreement, accuracy of the solvers, and memory."""
    with bar(console, "Two moons, CNF", settings.cnf_steps) as advance:
        likelihood = continuous.by_likelihood(settings, advance)
    with bar(console, "Two moons, flow matching", settings.matching_steps) as advance:
        matching = continuous.by_flow_matching(settings, advance)
    flows = [likelihood, matching]
    with bar(console, "Timing, torchdiffeq", speed.KINDS * settings.rounds) as advance:
        works, gap = continuous.measure(likelihood, settings, advance)
    with bar(console, "Memory of the gradient", len(settings.memory_steps)) as advance:
        memories = memory.measure(likelihood, settings, advance)
    nats = [*map(continuous.held_out_nats, flows)]
    return flows, nats, works, gap, continuous.accuracies(), memories


def _posterior(settings, console):
    """Three training runs of sbi's MAF, the loss of the exact posterior, and the profile of a step."""
    with bar(console, "Training, posterior", settings.posterior_steps * len(posterior.RUNS)) as advance:
        runs, best = posterior.train(settings.posterior_steps, advance)
    return runs, best, posterior.profile(settings.profile_seconds)


def _pictures(flow, data, results, settings, console, folder):
    with bar(console, "Two moons, Real NVP", settings.moons_steps) as advance:
        two_moons = moons.train(settings, lambda loss: advance(f"{loss:.3f} nats"))
    torch.manual_seed(SEED)
    with torch.no_grad():
        logits = flow.eval().sample(figures.ROWS, torch.eye(digits.CLASSES))
    return {
        "digits": figures.digit_grids(data, digits.to_levels(logits), folder / "digits.png"),
        "training": figures.training_curves(results.plain_curve, results.accelerated_curve, folder / "training.png"),
        "speed": figures.throughput(results.works, folder / "speed.png"),
        "autoregressive": figures.autoregressive(results.maf_works, folder / "autoregressive.png"),
        "cost": cost_chart(results.costs, folder / "cost.png"),
        "posterior": posterior_chart.chart(
            results.posterior_runs, results.posterior_best, results.posterior_profile, folder / "posterior.png"
        ),
        "moons": figures.two_moons(two_moons, folder / "moons.png"),
    }


def _print_tables(results, console):
    for table in (
        tables.training(results),
        tables.agreement(results.agreement),
        tables.speed(results.works),
        tables.agreement(results.maf_agreement),
        tables.autoregressive(results),
        tables.cost(results.costs),
        tables.posterior(results),
        tables.continuous(results),
        tables.memory(results.memories),
    ):
        table.show(console)

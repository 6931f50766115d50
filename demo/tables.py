"""The demo's figures as tables, for the terminal and the page."""

from statistics import median

import torch

from demo import digits
from demo import memory as gradient_memory
from demo.cost_chart import WAYS
from flowkern.report.table import Table
from flowkern.report.timing import quartiles


def training(results):
    """Where every run ended, and how far its held-out curve ever was from the plain one."""
    plain = results.plain_curve
    runs = {
        "plain": plain,
        "accelerated": results.accelerated_curve,
        "control, changed by 1e-7": results.control_curve,
    }
    return Table(
        f"Training, {len(plain.bits)} steps from the same seed",
        ("run", "held-out bits per dimension", "largest gap to plain", "training time"),
        [[name, f"{c.held_out_bits[-1]:.4f}", _gap(plain, c), f"{c.seconds[-1]:.1f} s"] for name, c in runs.items()],
        (
            f"A model that knows nothing needs log₂ {digits.LEVELS} = {digits.UNIFORM_BITS:.2f}.",
            f"Before any training, the two losses differ by {_first_difference(results):.1g}.",
        ),
    )


def posterior(results):
    """Where each run of posterior training ended, and how long it took."""
    plain = results.posterior_runs[0]
    rows = [
        [run.name, f"{run.nats[-1]:.4f}", f"{run.seconds[-1]:.2f} s", f"{plain.seconds[-1] / run.seconds[-1]:.1f} ×"]
        for run in results.posterior_runs
    ]
    note = f"The exact posterior has {results.posterior_best:.4f} nats."
    return Table("Posterior estimation", ("run", "held-out nats", "training time", "vs plain"), rows, (note,))


def _gap(plain, other):
    if other is plain:
        return "–"
    return f"{max(abs(a - b) for a, b in zip(plain.held_out_bits, other.held_out_bits)):.4f}"


def _first_difference(results):
    return abs(results.plain_curve.bits[0] - results.accelerated_curve.bits[0])


def agreement(rows):
    """The largest differences between plain and accelerated flows, and of each to float64."""
    cells = [[what, *(_distance(d) for d in distances)] for what, *distances in rows]
    columns = ("", "accelerated − plain", "plain − float64", "accelerated − float64")
    return Table("Largest differences, the same weights in float32", columns, cells)


def _distance(distance):
    return "nflows stopped" if distance is None else f"{distance:.1e}"


def speed(works):
    """Milliseconds and ratios of every kind of work."""
    names = [n for n in ("eager", "torch.compile", "flowkern") if any(n in w.timings for w in works)]
    peers = [name for name in names if name != "flowkern"]
    rows = [
        [work.title] + [_milliseconds(work, name) for name in names] + [_speedup(work, peer) for peer in peers]
        for work in works
    ]
    columns = ("", *names, *(f"vs {peer.removeprefix('torch.')}" for peer in peers))
    return Table("Speed in milliseconds, and how many times faster", columns, rows, tuple(_notes(works)))


def autoregressive(results):
    """Microseconds per sample of the autoregressive flows, plain and accelerated."""
    rows = [
        [
            work.title.removeprefix("sampling, "),
            f"{bits:.2f}",
            *(_per_sample(work, name) for name in ("eager", "flowkern")),
            _speedup(work, "eager"),
        ]
        for work, bits in zip(results.maf_works, results.maf_bits)
    ]
    return Table(
        "Sampling from autoregressive flows, microseconds per sample",
        ("", "held-out bits per dimension", "plain", "accelerated", "times faster"),
        rows,
        (f"{results.maf_works[0].items} samples per call, {digits.FEATURES} features.",),
    )


def _per_sample(work, name):
    return _with_spread([1e6 * s / work.items for s in work.timings[name].seconds])


def cost(costs):
    """Milliseconds of forward and inverse against D, and their ratios."""
    rows = [
        [
            str(c.features),
            *(_median_ms(c.timings.get(name)) for name in WAYS),
            *(_times(c.ratio(name)) for name in ("eager", "flowkern")),
        ]
        for c in costs
    ]
    columns = (
        "D", "nflows forward", "nflows inverse", "accelerated forward", "accelerated inverse",
        "nflows inverse / forward", "accelerated inverse / forward",
    )  # fmt: skip
    return Table("Cost against the number of features D, milliseconds", columns, rows)


def continuous(results):
    """Milliseconds of a continuous flow, by torchdiffeq and by flowkern."""
    works = results.ode_works
    rows = [
        [
            work.title,
            *(_milliseconds(work, name) for name in ("torchdiffeq", "flowkern")),
            _speedup(work, "torchdiffeq"),
            *(f"{work.items / work.timings[name].median:,.0f}" for name in ("torchdiffeq", "flowkern")),
        ]
        for work in works
    ]
    columns = (
        "", "torchdiffeq", "flowkern", "times faster", "points per second, torchdiffeq", "flowkern",
    )  # fmt: skip
    sizes = ", ".join(f"{work.title} {work.items}" for work in works)
    notes = (
        f"Milliseconds per call. Points per call: {sizes}.",
        f"The two values of log_prob differ by {results.ode_gap:.1g} nats at most.",
    )
    return Table("A continuous flow, by torchdiffeq and by flowkern", columns, rows, notes)


def memory(memories):
    """MiB at the peak of a forward and backward, against the number of steps."""
    ways = ("torchdiffeq", *gradient_memory.WAYS)
    rows = [[str(m.steps), *(_mebibytes(m.peaks.get(way)) for way in ways)] for m in memories]
    return Table(
        "Memory of the gradient, MiB",
        ("steps", "torchdiffeq", *(f"flowkern, {way}" for way in gradient_memory.WAYS)),
        rows,
        (f"At the peak of one forward and backward of log_prob, {gradient_memory.BATCH} points.",),
    )


def _mebibytes(size):
    return "–" if size is None else f"{size / 2**20:.2f}"


def _median_ms(timing):
    return "–" if timing is None else f"{1e3 * timing.median:.3g}"


def _times(ratio):
    return "–" if ratio is None else f"{ratio:.3g}"


def _milliseconds(work, name):
    timing = work.timings.get(name)
    return "–" if timing is None else _with_spread([1e3 * s for s in timing.seconds])


def _speedup(work, peer):
    if not {peer, "flowkern"} <= work.timings.keys():
        return "–"
    return _with_spread(work.timings["flowkern"].speedups_over(work.timings[peer]))


def _with_spread(values):
    """Median ± half the interquartile range, to three digits."""
    lower, upper = quartiles(values)
    middle = median(values)
    decimals = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{decimals}f} ± {(upper - lower) / 2:.{decimals}f}"


def _notes(works):
    rounds = len(next(iter(works[0].timings.values())).seconds)
    sizes = ", ".join(f"{w.title} {w.items}" for w in works)
    yield f"Milliseconds per call, median of {rounds} rounds ± half the interquartile range."
    yield "“vs”: how many times faster flowkern is, taken within each round."
    yield f"Digits per call: {sizes}."
    compiled = [w for w in works if w.compile_seconds is not None and "torch.compile" in w.timings]
    if compiled:
        times = ", ".join(f"{w.title} {w.compile_seconds:.0f} s" for w in compiled)
        yield f"torch.compile compiled, up to its third call: {times}."
    for work in works:
        for name, reason in work.refused.items():
            yield f"{work.title}: {name} could not be timed: {reason}"
    busy = [t.busy_cores for w in works for t in w.timings.values()]
    yield f"Cores kept busy while timing: {min(busy):.1f} to {max(busy):.1f}."
    if min(busy) < 0.75 * torch.get_num_threads():
        yield (
            f"Of {torch.get_num_threads()} threads some had to wait for other programs: these times are no "
            "measurement, and the ratios hold roughly at most."
        )


def fields(title, values):
    """Name → value as a table of two columns."""
    return Table(title, ("", ""), [[name, value] for name, value in values.items()])

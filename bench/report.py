"""Turn measured tables into JSON and Markdown, with all ratios."""

import json
import statistics
from pathlib import Path

from bench import peers
from bench.harness import paired_ratio
from flowkern.report.table import grid
from flowkern.report.timing import Timing, duration

charts = peers.optional("demo.cost_chart")  # needs matplotlib
RESULTS = Path(__file__).parent / "results"
_PEERS = ("nflows", "zuko", "normflows", "torchdiffeq")
_HAND = ("dense", "eager", "hand", "closed form")


def write(results, quick):
    """Save bench/results/latest.json and .md (quick: quick.*); return the Markdown."""
    name = "quick" if quick else "latest"
    RESULTS.mkdir(exist_ok=True)
    try:
        picture = _cost_chart(results["tables"], RESULTS / f"{name}-cost.png")
    except ModuleNotFoundError:
        picture = []
    text = markdown(results, picture)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    return text


def markdown(results, picture=()):
    """The whole report: environment, comparison table, `picture`, then every table in full."""
    lines = ["# Benchmark results", ""]
    lines += [f"- {key}: {value}" for key, value in results["environment"].items()]
    lines += ["", "## Comparison", "", *comparison(results["tables"]), "", *picture]
    for table in results["tables"]:
        lines += [f"## {table['title']}", "", *_details(table), ""]
    return "\n".join(lines)


def comparison(tables):
    """One line for each table: flowkern's time, and how many times longer the others take."""
    header = ["work", "flowkern", *_PEERS, "by hand", "best compiled", "flowkern ÷ limit"]
    rows = []
    for table in tables:
        measured = _measured(table)
        row_of = {row["name"]: row for row in table["candidates"]}
        ours = table["candidates"][0]
        hand = next((name for name in _HAND if name in row_of), None)
        rows.append([
            table["title"],
            duration(statistics.median(ours["seconds"])) if ours["name"] in measured else "refused",
            *(versus(row_of.get(name), measured) for name in (*_PEERS, hand)),
            _best_compiled(measured),
            limit_ratio(ours, measured),
        ])  # fmt: skip
    refused = [line for table in tables for line in _refused(table)]
    return [*grid(header, rows), "", *refused]


# Of the tables "masked_autoregressive-cost-D": what the chart calls a way, and the candidate.
_WAYS = {
    "eager forward": "forward of nflows",
    "eager inverse": "nflows",
    "flowkern forward": "forward of accelerate(nflows)",
    "flowkern inverse": "accelerate(nflows)",
}


def _cost_chart(tables, path):
    """Lines that show the picture of cost against D, drawn at `path`; none without such tables."""
    costs = []
    for table in tables:
        features = table["name"].partition("masked_autoregressive-cost-")[2]
        if features:
            measured = _measured(table)
            timings = {w: Timing(measured[n]["seconds"]) for w, n in _WAYS.items() if n in measured}
            costs.append(charts.Cost(int(features), timings))
    if not costs:
        return []
    charts.chart(costs, path)
    return ["## Inverse of a masked autoregressive layer, D features", "", f"![]({path.name})", ""]


def _details(table):
    """Every candidate of one table."""
    measured = _measured(table)
    header = ["candidate", "min", "median", "IQR", "CPU/wall", "÷ flowkern", "÷ limit"]
    rows = [_detail(row, measured) for row in table["candidates"] if "refused" not in row]
    lines = grid([*header, "peak MiB", "error (allowed)"], rows)
    foreign = table["foreign_load"]
    lines += ["", "Other processes' share of the machine: " + _percent(foreign) + "."]
    faults = {n: statistics.median(row["faults"]) for n, row in measured.items()}
    if any(faults.values()):
        counts = ", ".join(f"{n} {count:.0f}" for n, count in faults.items() if count)
        lines += [f"Page faults per call: {counts}."]
    return lines


def _refused(table):
    return [
        f"Refused: {table['title']}: {row['name']}: {row['refused']}" for row in table["candidates"] if "refused" in row
    ]


def _detail(row, measured):
    seconds = row["seconds"]
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    limit = row["name"].startswith("limit")
    return [
        row["name"],
        duration(min(seconds)),
        duration(statistics.median(seconds)),
        duration(quartiles[2] - quartiles[0]),
        f"{statistics.median(row['cpu']):.2f}",
        "" if limit else versus(row, measured),
        limit_ratio(row, measured),
        "" if limit else f"{row['peak_bytes'] / 2**20:.2f}",
        f"{row['error']:.0e} ({row['allowed']:.0e})" if "error" in row else "",
    ]


def _measured(table):
    return {row["name"]: row for row in table["candidates"] if "refused" not in row}


def versus(row, measured):
    """How many times longer `row` takes than the flowkern candidate of the same maths."""
    if row is None:
        return ""
    if row["name"] not in measured or row["ours"] not in measured:
        return "refused"
    return f"{paired_ratio(row, measured[row['ours']]):.2f}"


def _best_compiled(measured):
    """The fastest that torch.compile made of anything but flowkern, relative to flowkern."""
    ratios = [
        (paired_ratio(row, measured[row["ours"]]), name)
        for name, row in measured.items()
        if name.startswith("compile(") and row["ours"] in measured and row["ours"] not in name
    ]
    return "{:.2f} {}".format(*min(ratios)) if ratios else ""


def limit_ratio(row, measured):
    limit = next((r for name, r in measured.items() if name.startswith("limit")), None)
    if limit is None or row["name"] not in measured:
        return ""
    return f"{paired_ratio(row, limit):.2f}"


def _percent(share):
    return "unknown" if share is None else f"{100 * share:.0f} %"

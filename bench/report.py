"""Turn measured tables into CSV and Markdown, with all ratios."""

import statistics
from pathlib import Path

from bench import peers, records
from bench.harness import paired_ratio
from flowkern.report.table import grid
from flowkern.report.timing import Timing, duration

charts = peers.optional("demo.cost_chart")  # needs matplotlib
RESULTS = Path(__file__).parent / "results"
_PEERS = ("nflows", "zuko", "normflows", "torchdiffeq")
_HAND = ("dense", "eager", "hand", "closed form")


def write(results, quick):
    """Save the results in this machine's file (quick: quick.csv) and a page beside it; return the whole report."""
    RESULTS.mkdir(exist_ok=True)
    rows = records.rows(results)
    path = RESULTS / ("quick.csv" if quick else records.file_name(results["environment"]["machine"]))
    records.write(path, rows)
    summarise(path)
    return markdown(rows)


def summarise(path):
    """Write the comparison of all tables of a file into a page beside it; return the page."""
    rows = records.read(path)
    try:
        picture = _cost_chart(records.tables(rows), path.with_name(f"{path.stem}-cost.png"))
    except ModuleNotFoundError:
        picture = []
    page = path.with_suffix(".md")
    page.write_text("\n".join([*_heading(rows), *picture]))
    return page


def markdown(rows):
    """The whole report: what it was measured on, the comparison, then every table in full."""
    lines = _heading(rows)
    for table in records.tables(rows):
        lines += [f"## {table['title']}", "", *_details(table), ""]
    return "\n".join(lines)


def _heading(rows):
    runs = [f"- {'; '.join(run)}" for run in records.runs(rows)]
    legend = (
        "Times of one call are flowkern's; the other columns say how many times as long the same work takes elsewhere."
    )
    return [
        "# Benchmark results",
        "",
        *runs,
        "",
        "## Comparison",
        "",
        legend,
        "",
        *comparison(records.tables(rows)),
        "",
    ]


def comparison(tables):
    """One line for each table: flowkern's time, and how many times longer the others take."""
    header = ["work", "flowkern", *_PEERS, "plain model", "flowjax", "by hand", "best compiled", "flowkern ÷ limit"]
    rows = []
    for table in tables:
        measured = _measured(table)
        row_of = {row["name"]: row for row in table["candidates"]}
        ours = table["candidates"][0]
        hand = next((name for name in _HAND if name in row_of), None)
        plain = next((name for name in row_of if f"accelerate({name})" in row_of and name not in _PEERS), None)
        rows.append([
            table["title"],
            duration(statistics.median(ours["seconds"])) if ours["name"] in measured else "refused",
            *(versus(row_of.get(name), measured) for name in (*_PEERS, plain, "flowjax", hand)),
            _best_compiled(measured),
            limit_ratio(ours, measured),
        ])  # fmt: skip
    refused = [line for table in tables for line in _refused(table)]
    return [*_with_entries(header, rows), "", *refused]


def _with_entries(header, rows):
    """The Markdown table without columns that are empty in all rows."""
    used = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows)]
    return grid([header[i] for i in used], [[row[i] for i in used] for row in rows])


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

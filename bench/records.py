"""The open format of results: CSV, one row for each measurement, one file for each machine.

A table of the harness is several rows, one for each candidate, with the samples of its interleaved rounds. A run
replaces the rows of the tables that it measured and keeps the others. This module needs nothing but Python.
"""

import csv
import re
import statistics

COLUMNS = (
    *("kernel", "mode", "shape", "dtype", "provider", "p20", "p50", "p80"),  # what was timed, and seconds of a call
    *("machine", "versions", "revision", "date", "settings"),
    *("error", "allowed", "refused"),  # against float64; why a candidate was not timed
    *("cpu", "faults", "calls", "peak_bytes", "foreign_load"),
    *("table", "compared_with", "seconds"),  # one number for each round, so that ratios can be taken within rounds
)
_NUMBERS = {"error": float, "allowed": float, "calls": int, "peak_bytes": int}
_MEDIANS = ("cpu", "faults")
_SETTINGS = ("effort", "threads", "allocator", "backends")


def file_name(machine):
    """The name of the file of a machine: its processor, as "amd-epyc-family-26.csv"."""
    processor = re.sub(r"\(.*?\)|@.*|\bProcessor\b|\bCPU\b", " ", ",".join(machine.split(",")[:2]))
    return "-".join(re.findall(r"[a-z0-9]+", processor.lower())) + ".csv"


def rows(results):
    """The results of the harness, {"environment", "tables"}, as rows of the format."""
    of_run = _of_run(results["environment"])
    return [_row(table, candidate) | of_run for table in results["tables"] for candidate in table["candidates"]]


def _of_run(environment):
    return {
        "machine": f"{environment['machine']}, memory {environment['memory']}",
        "versions": f"{environment['versions']}, {environment['system']}",
        "revision": environment["flowkern"],
        "date": environment["date"],
        "settings": "; ".join(f"{name}: {environment[name]}" for name in _SETTINGS if name in environment),
    }


def _row(table, candidate):
    kernel, mode, shape = _parts(table["title"])
    row = {
        "kernel": kernel, "mode": mode, "shape": shape, "dtype": candidate.get("dtype", "float32"),
        "provider": candidate["name"], "compared_with": candidate["ours"], "table": table["name"],
        "foreign_load": _short(table["foreign_load"]), "refused": candidate.get("refused", ""),
    }  # fmt: skip
    row |= {name: _short(candidate.get(name)) for name in _NUMBERS}
    if "seconds" in candidate:
        row |= dict(zip(("p20", "p50", "p80"), map(_short, percentiles(candidate["seconds"]))))
        row["seconds"] = " ".join(map(_short, candidate["seconds"]))
        row |= {name: _short(statistics.median(candidate[name])) for name in _MEDIANS if name in candidate}
    return row


def percentiles(seconds):
    """(p20, p50, p80) of the samples."""
    if len(seconds) == 1:
        return tuple(seconds) * 3
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return fifths[0], statistics.median(seconds), fifths[3]


def _short(number):
    return "" if number is None else f"{number:.4g}" if isinstance(number, float) else str(number)


def _parts(title):
    """(kernel, mode, shape) of the title of a table, "kernel, mode, N=…"."""
    work, comma, shape = title.partition(", N=")
    kernel, _, mode = work.partition(", ")
    return kernel, mode, f"N={shape}" if comma else ""


def read(path):
    """The rows of a file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path, new):
    """Put rows into a file, in place of those of the same tables."""
    old = read(path) if path.exists() else []
    measured = {row["table"] for row in new}
    kept = [row for row in old if row["table"] not in measured]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *new])


def tables(rows):
    """Rows as the harness's tables, in the order of the file."""
    found = {}
    for row in rows:
        title = ", ".join(filter(None, (row["kernel"], row["mode"], row["shape"])))
        load = float(row["foreign_load"]) if row["foreign_load"] else None
        table = {"name": row["table"], "title": title, "foreign_load": load, "candidates": []}
        found.setdefault(row["table"], table)["candidates"].append(_candidate(row))
    return list(found.values())


def _candidate(row):
    candidate = {"name": row["provider"], "ours": row["compared_with"]}
    if row["refused"]:
        return candidate | {"refused": row["refused"]}
    candidate |= {name: kind(row[name]) for name, kind in _NUMBERS.items() if row[name]}
    candidate |= {name: [float(row[name])] for name in _MEDIANS if row[name]}
    return candidate | {"seconds": [float(second) for second in row["seconds"].split()]}


def runs(rows):
    """What the runs that a file holds depended on, each once: (machine, versions, revision, date, settings)."""
    names = ("machine", "versions", "revision", "date", "settings")
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))

"""The results as Markdown, written beside the JSON."""

import statistics

from bench import report as tables
from bench.gpu_gate import PARTS

DRY = "**A dry run without a GPU: it proves that the code runs, and measures nothing.**"


def write(store):
    """Write the Markdown file; return the text."""
    text = markdown(store)
    store.path.with_suffix(".md").write_text(text)
    return text


def failures(store):
    """(part, item, what) of everything that went wrong."""
    return [
        (part, item, what)
        for part in PARTS
        for item, result in store.results(part).items()
        for what in result.get("failures", ())
    ]


def markdown(store):
    about = store.data["about"]
    lines = ["# GPU gate", "", *([DRY, ""] if about["dry run"] else [])]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "## Parts", "", *_parts(store), ""]
    wrong = [f"- {part}, {item}: {' '.join(what.split())}" for part, item, what in failures(store)]
    lines += ["## Failures", "", *(wrong or ["None of what has run."]), ""]
    if not about["dry run"]:
        for title, section in _SECTIONS.items():
            lines += [f"## {title}", "", *section(store), ""]
    return "\n".join(lines)


def _parts(store):
    """How many items of each part ran, and why others did not."""
    rows = []
    for part in PARTS:
        results = store.results(part).values()
        wrong = sum(bool(result.get("failures")) for result in results)
        checks = sum(result.get("checks", 0) for result in results)
        reason = store.data.get("missing", {}).get(part, "has not been run")
        state = "" if results else f"not run: {reason}" if reason else "nothing has run"
        rows.append([part, str(len(results) - wrong), str(wrong), str(checks or ""), state])
    return tables.grid(["part", "items right", "failed", "checks", ""], rows)


def _limits(store):
    rows = []
    for name, result in store.results("limits").items():
        if "bytes/s" in result:
            rows.append([name, f"{result['bytes/s'] / 1e9:.0f} GB/s"])
        elif "FLOP/s" in result:
            rows.append([f"{name}, {result['size']}²", f"{result['FLOP/s'] / 1e12:.1f} TFLOP/s"])
        elif "seconds" in result:
            rows.append([name, tables.duration(result["seconds"])])
    return tables.grid(["limit", "measured"], rows)


def _tuned(store):
    rows = [
        [kernel, *map(str, (row["default"], row["chosen"])), _gain(row)]
        for result in store.results("autotune").values()
        for kernel, row in result.get("kernels", {}).items()
    ]
    return tables.grid(["Triton kernel", "default (elements, warps)", "chosen", "default ÷ chosen"], rows)


def _gain(row):
    default, chosen = (row["seconds"][str(tuple(row[name]))] for name in ("default", "chosen"))
    return f"{default / chosen:.2f}"


def _speed(store):
    measured = [result for result in store.results("speed").values() if "candidates" in result]
    lines = [
        "Device time of one call with cold L2, medians; how many times longer the others take.", "",
        *tables.comparison(measured),
    ]  # fmt: skip
    for table in measured:
        lines += ["", f"### {table['title']}", "", *_details(table)]
    return lines


def _details(table):
    measured = {row["name"]: row for row in table["candidates"] if "refused" not in row}
    header = ["candidate", "median", "back to back", "÷ flowkern", "÷ limit", "peak MiB", "error (allowed)"]
    rows = [
        [
            name,
            *(tables.duration(statistics.median(row[key])) for key in ("seconds", "back_to_back")),
            tables.versus(row, measured),
            tables.limit_ratio(row, measured),
            f"{row['peak_bytes'] / 2**20:.1f}",
            f"{row['error']:.0e} ({row['allowed']:.0e})" if "error" in row else "",
        ]
        for name, row in measured.items()
    ]
    return tables.grid(header, rows)


def _counters(store):
    lines = []
    for name, result in store.results("counters").items():
        for kernel in result.get("kernels", ()):
            lines += [f"### {name}", "", *tables.grid(["counter", "value"], list(kernel.items())), ""]
    return lines


_SECTIONS = {
    "Limits": _limits,
    "Launch parameters": _tuned,
    "Speed": _speed,
    "Hardware counters": _counters,
}

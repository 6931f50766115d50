"""The results as one page, report.html: what was measured, against what the machine can do and what was predicted."""

import html
import json
import os
from pathlib import Path

from tests.gpu.gate import PARTS, module, roofline

ROOT = Path(__file__).parents[3]
DRY = "A dry run without a GPU: it proves that the code runs, and measures nothing. The clock is made up."
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
td, th { padding: .18rem .7rem; border-bottom: 1px solid #dfe3ea; text-align: right; }
td:first-child, th:first-child { text-align: left; }
h2 { margin-top: 2.2rem; border-bottom: 2px solid #dfe3ea; } .wrong { color: #b3261e; }
.dry { background: #fff3cd; padding: .5rem; }
figure { display: inline-block; margin: .5rem; } figcaption { font-size: 13px; }
"""


def write(log):
    """Replaced in one step, so that it is never half written."""
    path = log.path.with_name("report.html")
    partial = path.with_suffix(".partial")
    partial.write_text(page(log))
    os.replace(partial, path)


def text(log):
    """A line for each part, and each failure."""
    lines = [f"{name}: {done} done, {wrong} wrong, {skipped} without time" for name, done, wrong, skipped in parts(log)]
    return "\n".join([*lines, *(f"wrong: {part}, {item}: {what}" for part, item, what in log.failures())])


def parts(log):
    """(part, items done, wrong, skipped)."""
    results = log.results()
    for part in PARTS:
        found = results.get(part.name, {}).values()
        wrong = sum(bool(r.get("failures")) for r in found)
        skipped = sum("skipped" in r for r in found)
        yield part.name, len(found) - wrong - skipped, wrong, skipped


def page(log):
    about, results = log.about(), log.results()
    body = ["<h1>flowkern on a GPU</h1>", *([f"<p class=dry>{DRY}</p>"] if about.get("dry run") else [])]
    body += ["<ul>", *(f"<li>{html.escape(f'{k}: {v}')}</li>" for k, v in about.items()), "</ul>"]
    body += ["<h2>Parts</h2>", *table([("part", "done", "wrong", "no time"), *parts(log)])]
    body += ["<h2>Wrong</h2>", *_wrong(log)]
    if not about.get("dry run"):
        body += ["<h2>Kernels and their rooflines</h2>", *roofline.section(results, predictions())]
        for part in PARTS:
            body += _section(part, results.get(part.name, {}))
    return f"<!doctype html><meta charset=utf-8><title>flowkern on a GPU</title><style>{_STYLE}</style>" + "\n".join(
        body
    )


def _wrong(log):
    wrong = [f"<li class=wrong>{html.escape(f'{part}, {item}: {what}')}</li>" for part, item, what in log.failures()]
    return ["<ul>", *wrong, "</ul>"] if wrong else ["<p>Nothing of what has run.</p>"]


def predictions():
    """{op: {kernel: {"share", "limit", …}}}, counted from the compiled code."""
    return {p.parent.name: json.loads(p.read_text()) for p in ROOT.glob("csrc/*/predictions.json")}


def _section(part, results):
    """Lines of Markdown tables, as HTML."""
    if not results:
        return []
    section = getattr(module(part), "section", lambda results: (part.name, []))
    try:
        title, lines = section(results)
        return [f"<h2>{html.escape(title)}</h2>", *markdown(lines)]
    except Exception as error:  # the rest of the page is worth having, and the results are in results.jsonl
        return [f"<p class=wrong>{part.name}: {html.escape(f'{type(error).__name__}: {error}')}</p>"]


def markdown(lines):
    """Headings, tables and plain lines."""
    rows = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            rows += [] if set(line) <= set("|- ") else [[cell.strip() for cell in line.strip("|").split("|")]]
            continue
        if rows:
            yield from table(rows)
            rows = []
        if line:
            level = "h3" if line.startswith("#") else "p"
            yield f"<{level}>{html.escape(line.lstrip('# '))}</{level}>"


def table(rows):
    """The first row is the header."""
    yield "<table>"
    for number, row in enumerate(rows):
        kind = "td" if number else "th"
        yield "<tr>" + "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in row) + "</tr>"
    yield "</table>"

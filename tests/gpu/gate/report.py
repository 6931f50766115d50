"""The results as Markdown, written beside the JSON."""

from flowkern.report.table import grid
from tests.gpu.gate import PARTS, module

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
        for part in PARTS:
            if hasattr(module(part), "section"):
                title, section = module(part).section(store.results(part))
                lines += [f"## {title}", "", *section, ""]
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
    return grid(["part", "items right", "failed", "checks", ""], rows)

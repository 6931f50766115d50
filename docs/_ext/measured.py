"""The directives `measured` and `bars`: measurements of bench/results as tables and as bars.

    ```{measured} amd-epyc-family-26
    :against: sbi maf = nflows, flowjax
    whole_flows-sbi-maf-log-prob-1 | `log_prob`, N = 1
    ```

Each line of the body names one table of the file and says what it measured. The first candidate of a table is
flowkern's; `against` names the candidates that it is compared with, and what the column is called.
"""

import html
import statistics

from docutils import nodes
from docutils.parsers.rst import directives
from repository import ROOT
from sphinx.util.docutils import SphinxDirective

from bench import records


def ratio(other, ours):
    """The median over interleaved rounds of the other's time over ours."""
    return statistics.median(a / b for a, b in zip(other["seconds"], ours["seconds"]))


def duration(seconds):
    """Three digits and a unit."""
    unit, factor = next((u, f) for u, f in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if seconds * f >= 1 or u == "µs")
    return f"{seconds * factor:.3g} {unit}"


class _Measurements(SphinxDirective):
    required_arguments = 1
    has_content = True

    def tables(self):
        """(label, candidates by name) of each line of the body."""
        path = ROOT / "bench" / "results" / f"{self.arguments[0]}.csv"
        self.env.note_dependency(str(path))
        named = {table["name"]: table for table in records.tables(records.read(path))}
        for line in self.content:
            name, _, label = (part.strip() for part in line.partition("|"))
            if name not in named:
                raise self.error(f"{path.name} has no table {name}; it has {', '.join(named)}")
            yield label, {row["name"]: row for row in named[name]["candidates"] if "refused" not in row}


class Measured(_Measurements):
    """A table: flowkern's time, and how many times as long each other candidate takes."""

    option_spec = {"against": directives.unchanged, "memory": directives.flag}

    def run(self):
        others = [
            [part.strip() for part in one.split("=")] for one in self.options.get("against", "").split(",") if one
        ]
        header = [
            "",
            "flowkern",
            *(other[-1] for other in others),
            *(["peak memory"] if "memory" in self.options else []),
        ]
        lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
        for label, rows in self.tables():
            ours = next(iter(rows.values()))
            cells = [
                label,
                duration(statistics.median(ours["seconds"])),
                *(_times(rows.get(o[0]), rows) for o in others),
            ]
            lines.append(cells + ([f"{ours['peak_bytes'] / 2**20:.2f} MiB"] if "memory" in self.options else []))
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _times(row, rows):
    return f"{ratio(row, rows[row['ours']]):.1f} ×" if row else ""


class Bars(_Measurements):
    """Bars of the median time of every candidate, one group for each line."""

    option_spec = {"only": directives.unchanged}

    def run(self):
        wanted = [name.strip() for name in self.options.get("only", "").split(",") if name.strip()]
        groups = [_bars(label, rows, wanted or rows) for label, rows in self.tables()]
        return [nodes.raw("", "\n".join(groups), format="html")]


def _bars(label, rows, names):
    medians = {name: statistics.median(rows[name]["seconds"]) for name in names if name in rows}
    longest = max(medians.values())
    lines = [f'<div class="bars"><p>{html.escape(label)}</p>']
    for name, seconds in medians.items():
        kind = "ours" if name == rows[name]["ours"] else "limit" if name.startswith("limit") else "other"
        lines.append(
            f'<span>{html.escape(name)}</span><span><i class="{kind}" style="width:{100 * seconds / longest:.1f}%">'
            f"</i><b>{duration(seconds)}</b></span>"
        )
    return "\n".join([*lines, "</div>"])


def setup(app):
    app.add_directive("measured", Measured)
    app.add_directive("bars", Bars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

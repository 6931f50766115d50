"""Measured times of each op from bench/results: {name: function that draws them}."""

import math
import sys
from functools import partial
from pathlib import Path

from svg import LIMIT, LINE, OTHER, OURS, QUIET, Picture

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench import records  # noqa: E402

RESULTS = Path(__file__).parents[2] / "bench" / "results"
# op: (file, (table, label)…)
SHOWN = {
    "affine_coupling": (
        "amd-epyc-family-25",
        ("affine_coupling-forward-65536", "forward, 65536 × 64"),
        ("affine_coupling-forward+backward-65536", "forward and backward, 65536 × 64"),
    ),
    "rational_quadratic_spline": (
        "amd-epyc-family-25",
        ("rational_quadratic_spline-forward-32768", "forward, 32768 × 32, 8 bins"),
        ("rational_quadratic_spline-inverse-32768", "inverse"),
        ("rational_quadratic_spline-forward+backward-32768", "forward and backward"),
    ),
    "masked_autoregressive": (
        "amd-epyc-family-25",
        ("masked_autoregressive-inverse-16", "inverse, N = 16, 64 features, two hidden layers of 256"),
        ("masked_autoregressive-inverse-1024", "inverse, N = 1024"),
        ("masked_autoregressive-inverse+backward-1024", "inverse with gradients, N = 1024"),
    ),
    "neural_ode": (
        "amd-epyc-family-25",
        ("neural_ode-exact-forward-1024", "exact trace, forward, N = 1024, 8 features, 2 × 64 units, 16 steps of rk4"),
        ("neural_ode-exact-forward+backward-1024", "exact trace, forward and backward"),
        ("neural_ode-hutchinson-forward+backward-1024", "Hutchinson's trace, forward and backward"),
    ),
    "flow_program": (
        "amd-epyc-family-26",
        ("whole_flows-sbi-maf-forward-and-backward-200", "sbi's MAF, forward and backward, N = 200"),
        ("whole_flows-sbi-maf-sampling-4096", "sbi's MAF, sampling, N = 4096"),
        ("whole_flows-sbi-nsf-forward-and-backward-200", "sbi's NSF, forward and backward, N = 200"),
        ("whole_flows-sbi-nsf-sampling-4096", "sbi's NSF, sampling, N = 4096"),
    ),
}
LEFT, RIGHT, WIDTH = 190, 90, 700


def draw(name):
    """Bars of the median on a logarithmic axis, and a line from the 20th to the 80th percentile."""
    file, *shown = SHOWN[name]
    rows = records.read(RESULTS / f"{file}.csv")
    rows = [row for row in rows if row["table"] in dict(shown) and row["p50"]]
    ends = [float(row[p]) for row in rows for p in ("p20", "p80")]
    axis = Axis(0.7 * min(ends), 1.1 * max(ends))
    picture, y = Picture(WIDTH), 14
    for table, label in shown:
        y += 16
        picture.text(14, y, label, 13, weight="bold")
        for row in sorted((row for row in rows if row["table"] == table), key=lambda row: float(row["p50"])):
            y += 20
            bar(picture, axis, y, row)
        y += 14
    axis.draw(picture, y)
    picture.text(
        14, y + 34, f"{rows[0]['machine'].partition(', last')[0]}; float32; 20th to 80th percentile", 11.5, fill=QUIET
    )
    return picture


class Axis:
    """Seconds on a logarithmic scale."""

    def __init__(self, low, high):
        self.low, self.high = math.log10(low), math.log10(high)

    def at(self, seconds):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(seconds) - self.low) / (self.high - self.low)

    def draw(self, picture, y):
        for exponent in range(math.ceil(self.low), math.floor(self.high) + 1):
            x = self.at(10.0**exponent)
            picture.line(x, 18, x, y, LINE, 0.6, dash="2 3")
            picture.text(x, y + 14, duration(10.0**exponent), 11.5, "middle", QUIET)


def bar(picture, axis, y, row):
    name, seconds = row["provider"], float(row["p50"])
    color = OURS if name == row["compared_with"] else LIMIT if name.startswith("limit") else OTHER
    picture.text(LEFT - 8, y + 4, name, 12, "end")
    picture.box(LEFT, y - 6, max(1, axis.at(seconds) - LEFT), 12, color, color)
    picture.line(axis.at(float(row["p20"])), y, axis.at(float(row["p80"])), y, "#1c2733", 1.4)
    picture.text(axis.at(max(seconds, float(row["p80"]))) + 6, y + 4, duration(seconds), 11.5)


def duration(seconds):
    unit, factor = next((u, f) for u, f in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if seconds * f >= 0.9995 or u == "µs")
    return f"{float(f'{seconds * factor:.3g}'):g} {unit}"


ALL = {name: partial(draw, name) for name in SHOWN}

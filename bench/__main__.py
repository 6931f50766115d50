"""Print the comparison table of the last run, of a JSON file, or of a run made now.

python -m bench                          the last run, bench/results/latest.json
python -m bench FILE.json                another run
python -m bench --run full --only spline measure all tables whose name has "spline" in it
python -m bench --run quick              tiny sizes, nothing compiled: proves that all runs
"""

import argparse
import json
import sys
from pathlib import Path

from bench import apart, environment, report, suite


def main():
    parser = argparse.ArgumentParser("python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=report.RESULTS / "latest.json")
    parser.add_argument("--run", choices=("full", "quick"), help="measure first")
    parser.add_argument("--only", nargs="+", default=[""], help="measure the tables whose name has one of these in it")
    options = parser.parse_args()
    if options.run:
        print(run(options.run == "quick", options.only))
    elif options.file.exists():
        print(report.markdown(json.loads(options.file.read_text())))
    else:
        parser.error(f"{options.file.name}: no such file; measure with --run full")


def run(quick, only):
    """Measure the tables whose name has a text of `only` in it; save after each, return the report."""
    tables = [t for t in suite.tables(quick) if any(text in t.name for text in only)]
    described = environment.describe(quick)
    measured, text = [], "no such table"
    for i, table in enumerate(tables):
        print(f"[{i + 1}/{len(tables)}] {table.title}", file=sys.stderr)
        measured.append(apart.measure(table.name, quick))
        text = report.write({"environment": described, "tables": measured}, quick)
    return text


if __name__ == "__main__":
    main()

"""Print results, or measure and print them.

python -m bench                          the results of all machines
python -m bench FILE.csv                 those of one file, each table in full
python -m bench --run full --only spline measure all tables whose name has "spline" in it
python -m bench --run quick              tiny sizes, nothing compiled: proves that all runs
python -m bench --trace FOLDER           time the calls that a run with FLOWKERN_TRACE=FOLDER made
"""

import argparse
import sys
from pathlib import Path

from bench import apart, environment, records, report, suite, trace


def main():
    parser = argparse.ArgumentParser("python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="results to print")
    parser.add_argument("--run", choices=("full", "quick"), help="measure first")
    parser.add_argument("--only", nargs="+", default=[""], help="measure the tables whose name has one of these in it")
    parser.add_argument("--trace", type=Path, metavar="FOLDER", help="time the calls that a traced run made")
    options = parser.parse_args()
    if options.trace:
        print(trace.replay(options.trace, options.run == "quick"))
    elif options.run:
        print(run(options.run == "quick", options.only))
    elif options.file:
        print(report.markdown(records.read(options.file)))
    else:
        for path in sorted(report.RESULTS.glob("*-*.csv")):
            print(report.summarise(path).read_text())


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

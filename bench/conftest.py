"""`pytest bench/`: the measured tables, and the report at the end of the session.

BENCH_QUICK=1 takes tiny sizes and compiles nothing: each candidate is checked and timed once.
"""

import os

import pytest

from bench import environment, harness, memory, report

QUICK = os.environ.get("BENCH_QUICK") == "1"
_EFFORT = harness.QUICK if QUICK else harness.FULL
_tables = pytest.StashKey()


@pytest.fixture
def measure(request):
    """`measure(table)` is the table's result; the first call measures all its candidates."""
    tables = request.config.stash.setdefault(_tables, {})
    memory.keep_pages()

    def measure_once(table):
        if table.name not in tables:
            tables[table.name] = harness.measure(table, _EFFORT)
        return tables[table.name]

    return measure_once


def pytest_terminal_summary(terminalreporter, config):
    """Write bench/results and print the comparison table."""
    tables = list(config.stash.get(_tables, {}).values())
    if not tables:
        return
    described = environment.describe(memory.keep_pages(), _EFFORT)
    results = {"environment": described, "tables": tables}
    report.write(results, "quick" if QUICK else "latest")
    terminalreporter.section("flowkern's time, and how many times longer the others take")
    for line in report.comparison(tables):
        terminalreporter.line(line)

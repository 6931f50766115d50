"""`pytest bench/`: the measured tables, and the report at the end of the session.

BENCH_QUICK=1 takes tiny sizes and compiles nothing: each candidate is checked and timed once.
"""

import os

import pytest

from bench import apart, environment, report

QUICK = os.environ.get("BENCH_QUICK") == "1"
_tables = pytest.StashKey()


@pytest.fixture
def measure(request):
    """`measure(table)` is the table's result; the first call measures all its candidates."""
    tables = request.config.stash.setdefault(_tables, {})

    def measure_once(table):
        if table.name not in tables:
            tables[table.name] = apart.measure(table.name, QUICK)
            measured = list(tables.values())
            report.write({"environment": environment.describe(QUICK), "tables": measured}, QUICK)
        return tables[table.name]

    return measure_once


def pytest_terminal_summary(terminalreporter, config):
    """Print the comparison table."""
    tables = list(config.stash.get(_tables, {}).values())
    if not tables:
        return
    terminalreporter.section("flowkern's time, and how many times longer the others take")
    for line in report.comparison(tables):
        terminalreporter.line(line)

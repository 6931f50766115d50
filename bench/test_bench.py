"""Every candidate of every table under pytest-benchmark.

pytest-benchmark runs its candidates one after the other, which on a drifting machine spoils their
ratios. So the harness takes the samples, with the candidates of a table interleaved, and
pytest-benchmark replays them: its clock advances by what each sample took. Its statistics, groups,
storage and comparison of runs (--benchmark-autosave, --benchmark-compare) then work as always.
"""

import statistics

import pytest

from bench import suite
from bench.conftest import QUICK

_CANDIDATES = [
    pytest.param(table, candidate.name, id=f"{table.name}/{candidate.name}")
    for table in suite.tables(QUICK)
    for candidate in table.candidates
]


class Replay:
    """A clock that `advance` moves on by the next of `samples`."""

    seconds, samples = 0.0, iter(())

    def now(self):
        return self.seconds

    def advance(self):
        self.seconds += next(self.samples)


_replay = Replay()


@pytest.mark.benchmark(timer=_replay.now)
@pytest.mark.parametrize(("table", "name"), _CANDIDATES)
def test_candidate(table, name, measure, request):
    row = next(row for row in measure(table)["candidates"] if row["name"] == name)
    if "refused" in row:
        # What torch.compile makes of a peer may be wrong: a finding for the report, no failure.
        assert name.startswith("compile(") and row["ours"] not in name, row["refused"]
        return
    benchmark = request.getfixturevalue("benchmark")
    benchmark.group = table.title
    benchmark.extra_info["CPU/wall"] = statistics.median(row["cpu"])
    benchmark.extra_info["peak bytes"] = row["peak_bytes"]
    _replay.samples = iter(row["seconds"])
    benchmark.pedantic(_replay.advance, rounds=len(row["seconds"]))

"""What the checks of an op are made of: functions of the backend and a seed."""

import functools
import itertools
from typing import NamedTuple

import torch

from tests import cases

WIDE = (torch.float64, torch.float32)


def compared(chosen, gate, dtypes=WIDE):
    """Checks of these cases in both directions where there are two."""
    for case, dtype in itertools.product(chosen, dtypes):
        for directed in cases.directions(case):
            yield functools.partial(_compare, case, gate, dtype, directed)


def _compare(case, gate, dtype, directed, backend, seed):
    """A case with the reference, and with itself."""
    module = cases.of(case)
    module.check(case, backend, dtype, seed=seed, device=gate.device, **directed)
    same_twice(case, lambda: module.results(case, backend, dtype, seed, gate.device, **directed))


def same_twice(case, results):
    """Raise AssertionError unless `results` gives the same bits when it is called again."""
    for number, (first, second) in enumerate(zip(results(), results())):
        same = torch.equal(first.nan_to_num(7), second.nan_to_num(7))
        assert same, f"{case}: result {number} differs from call to call"


def smoke(odd, large, gate):
    """For each direction, checks of an odd and a large case in both dtypes."""
    chosen = (odd,) if gate.dry_run else (odd, large)
    both = itertools.product(chosen, WIDE[::-1])
    found = [[] for _ in cases.directions(odd)]
    for case, dtype in both:
        for checks, directed in zip(found, cases.directions(case)):
            checks.append(Check(case, gate, dtype, directed))
    return found


class Check(NamedTuple):
    """A case with the reference, and with itself."""

    case: object
    gate: object
    of_dtype: torch.dtype
    directed: dict

    @property
    def dtype(self):
        return str(self.of_dtype).removeprefix("torch.")

    def __call__(self, backend, seed):
        _compare(self.case, self.gate, self.of_dtype, self.directed, backend, seed)

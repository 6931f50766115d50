"""What the checks of an op are made of: functions of the backend and a seed."""

import functools
import itertools

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

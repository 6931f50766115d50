"""torchdiffeq's own tests with `flowkern.odeint` and `odeint_adjoint` in place of theirs.

    python -m tests.ode.torchdiffeq_suite FOLDER

FOLDER holds the test files of torchdiffeq's repository at version 0.2.5 (commit a88aac5); its distribution on
PyPI has none. Every test, and every subtest, passes, or is in the list below with its reason.
"""

import re
import sys
import unittest
import warnings
from collections import Counter

import torchdiffeq

import flowkern

FILES = ("api_tests", "gradient_tests", "norm_tests", "odeint_tests", "event_tests")
# What a failing test's name and message hold: why it fails.
REASONS = {
    "event_fn: events are not supported": "events are not there",
    "is no Runge-Kutta method": "Adams methods and those of SciPy are not there",
    "test_adjoint_norm .* no attribute 'adjoint_options'": "it reads a private attribute of torchdiffeq's backward",
}


class Result(unittest.TestResult):
    """Notes each test and subtest that ends, and the message of a failure."""

    def __init__(self):
        super().__init__()
        self.passed, self.failed = 0, []

    def addSuccess(self, test):
        self.passed += 1

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is None:
            self.passed += 1
        else:
            self._note(subtest, error)

    def addFailure(self, test, error):
        self._note(test, error)

    addError = addFailure

    def _note(self, test, error):
        lines = str(error[1]).splitlines()
        self.failed.append(f"{test.id()}: {error[0].__name__}: {lines[0] if lines else ''}")


def main(folder):
    """0 if every failure has a reason, and every reason a failure."""
    sys.path.insert(0, folder)
    torchdiffeq.odeint, torchdiffeq.odeint_adjoint = flowkern.odeint, flowkern.odeint_adjoint
    suite, result = unittest.defaultTestLoader.loadTestsFromNames(FILES), Result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite.run(result)
    reasons, unknown = Counter(), []
    for failure in result.failed:
        reason = next((reason for pattern, reason in REASONS.items() if re.search(pattern, failure)), None)
        reasons[reason] += 1
        unknown += [] if reason else [failure]
    print(f"{result.passed} passed, {len(result.failed)} failed")
    for reason, count in reasons.items():
        print(f"{count:5d}  {reason}")
    stale = [reason for reason in REASONS.values() if not reasons[reason]]
    for line in (*unknown, *(f"no failure: {reason}" for reason in stale)):
        print(line)
    return int(bool(unknown or stale))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

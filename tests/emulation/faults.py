"""Runs a kernel of faults.cu: `python -m tests.emulation.faults name` the wrong one, in this process."""

import ctypes
import functools
import sys

from tests.emulation import build

SOURCES = (build.HERE / "faults.cu",)
ORDERS = ((0, 0), (1, 0), (2, 1), (2, 2))  # (schedule, seed): forward, reversed, at random


@functools.cache
def _library():
    library = ctypes.CDLL(str(build.built(build.preloaded(), SOURCES)))
    library.run_fault.restype = ctypes.c_char_p
    return library


def run(name, wrong, order=ORDERS[0]):
    """(what was reported or None, the bytes of the result)"""
    result = (ctypes.c_float * 128)()
    report = _library().run_fault(name.encode(), wrong, *order, result)
    return report and report.decode(), bytes(result)


if __name__ == "__main__":
    print(run(sys.argv[1], wrong=True)[0])

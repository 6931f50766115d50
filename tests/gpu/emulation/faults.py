"""Small kernels: `python -m tests.gpu.emulation.faults name` runs the wrong one of that name in faults.cu."""

import ctypes
import functools
import sys

from tests.gpu.emulation import build

SOURCES = (build.HERE / "faults.cu", build.HERE / "types.cu")
ORDERS = ((0, 0), (1, 0), (2, 1), (2, 2))  # (schedule, seed): forward, reversed, at random


@functools.cache
def library():
    """faults.cu and types.cu."""
    loaded = ctypes.CDLL(str(build.built(build.preloaded(), SOURCES)))
    loaded.run_fault.restype = ctypes.c_char_p
    return loaded


def run(name, wrong, order=ORDERS[0]):
    """(what was reported or None, the bytes of the result)"""
    result = (ctypes.c_float * 128)()
    report = library().run_fault(name.encode(), wrong, *order, result)
    return report and report.decode(), bytes(result)


if __name__ == "__main__":
    print(run(sys.argv[1], wrong=True)[0])

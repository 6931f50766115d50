"""The dispatcher ops by the CUDA kernels in the emulation (emulated.cpp)."""

from dataclasses import replace

from tests.cases.coupling_emulated import backward, forward
from tests.cases.rational_quadratic_spline import CASES as NAMED
from tests.cases.rational_quadratic_spline import EDGES


def _spline(direction, count):
    def op(*arguments):
        tensors, (index, bound, inverse, tails, *numbers) = arguments[:count], arguments[count:]
        integers = (inverse, tails, numbers.pop(4))  # the knot map comes after the interval
        name = "rational_quadratic_spline"
        return direction(name, *tensors, index, bound, integers, tuple(numbers))

    return op


OPS = {"rational_quadratic_spline": _spline(forward, 2), "rational_quadratic_spline_backward": _spline(backward, 4)}
CASES = NAMED | EDGES
# In which every kernel runs.
EVERY = [replace(case, batch=case.batch and (min(case.batch[0], 1),)) for case in CASES.values()]
SAME_BITS = {name: case for name, case in EDGES.items() if "wide" in name or "257" in name}
MOST_BLOCKS = 2

"""The dispatcher ops by the CUDA kernels in the emulation (emulated.cpp)."""

from dataclasses import replace

from tests.cases.affine_coupling import CASES as NAMED
from tests.cases.affine_coupling import EDGES
from tests.cases.coupling_emulated import backward, forward


def _affine(direction, count):
    def op(*arguments):
        tensors, (index, *integers) = arguments[:count], arguments[count : count + 4]
        numbers = arguments[count + 4 :]
        return direction("affine_coupling", *tensors, index, None, integers, numbers)

    return op


OPS = {"affine_coupling": _affine(forward, 2), "affine_coupling_backward": _affine(backward, 4)}
CASES = NAMED | EDGES
# In which every kernel runs.
EVERY = [replace(case, batch=case.batch and (min(case.batch[0], 1),)) for case in CASES.values()]
SAME_BITS = {name: case for name, case in EDGES.items() if "wide" in name or "257" in name}
MOST_BLOCKS = 2

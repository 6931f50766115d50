"""Calls with more than 2^31 elements, compared with the float64 reference at some of their rows.

A dry run takes the same calls with few rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import flowkern
from tests.tolerances import assert_within

MOST = 2**31
ERROR = 1e-4  # of the largest value, in float32; a wrong index makes errors of its order


class Call(NamedTuple):
    """function(*tensors) -> outputs; tensors and outputs have N rows.

    shapes: of a row of each tensor. copies: how many times the memory of the first of them a call takes.
    grads: so many of the tensors have gradients.
    """

    function: Callable
    shapes: tuple
    copies: int
    grads: int = 0


def checks(op, calls, gate):
    """Checks of these calls, as functions of the backend and a seed."""
    for call in calls:
        yield lambda backend, seed, call=call: _check(op, call, backend, seed, gate)


def _check(op, call, backend, seed, gate):
    width = call.shapes[0][0]
    rows = rows_of(op, gate, width, call.copies * width)
    torch.manual_seed(seed)
    with torch.device(gate.device):
        tensors = [torch.randn(rows, *shape) for shape in call.shapes]
    got = _evaluate(call, tensors, backend)
    some = some_of(rows, width, gate)
    want = _evaluate(call, [t.detach()[some].double() for t in tensors], "reference")
    for number, (g, w) in enumerate(zip(got, want)):
        error = (g[some] - w).abs().max() / (1 + w.abs().max())
        assert_within(error.item() / ERROR, 1, f"large {op}, {rows} rows: result {number}")


def _evaluate(call, tensors, backend):
    """The outputs, and gradients for which the outputs are the cotangents too."""
    leaves = [t.requires_grad_() for t in tensors[: call.grads]]
    with flowkern.backend(backend):
        outputs = call.function(*tensors)
        found = [output.detach() for output in outputs]
        return found + ([*torch.autograd.grad(outputs, leaves, found)] if leaves else [])


def some_of(rows, width, gate):
    """Rows at both ends, about element 2^31, and at random."""
    edge = MOST // width
    some = torch.tensor([0, 1, rows - 2, rows - 1, *(min(edge + i, rows - 1) for i in (-1, 0, 1))])
    return torch.cat((some, torch.randint(rows, (500,)))).to(gate.device)


def rows_of(name, gate, width, numbers):
    """Rows of `width` with more than 2^31 elements; an error if `numbers` floats for each are too many."""
    if gate.dry_run:
        return 37
    rows = MOST // width + 5
    needed, (free, _) = 4 * rows * numbers, torch.cuda.mem_get_info()
    if 1.1 * needed > free:
        raise RuntimeError(f"large {name}: needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    return rows

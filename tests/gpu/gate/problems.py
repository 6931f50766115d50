"""Calls of the ops as the emulation gets them, recorded to a file, which driver.cu runs without Python.

`small`: the emulation's cases in which every kernel runs, with the values of their tensors. `large`: calls that are
timed and profiled; what is larger than a megabyte of them is not kept, the driver fills it with random numbers.
"""

import contextlib
import ctypes
import itertools
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

import flowkern
from tests import cases
from tests.cases import coupling
from tests.cases import masked_autoregressive as masked
from tests.cases import neural_ode as ode
from tests.gpu.emulation import device
from tests.gpu.emulation.library import Tensor

CONTENTS, RANDOM = range(2)
MOST = 2**20  # bytes of a tensor that are kept


def small():
    """The problems of every op's cases, forward and backward."""
    found = []
    for op, module in cases.modules("emulated").items():
        for number, case in enumerate(module.EVERY):
            for directed in cases.directions(case):
                with _recorded(found, f"{op} {number}"), device.emulated():
                    cases.of(case).results(case, "cpu", torch.float32, **directed)
    return found


def large(share=1.0):
    """One of each kind of kernel, or calls of a share of their rows; nothing is computed."""
    found = []
    for name, call in _calls(share):
        with _recorded(found, name, runs=False), device.emulated(), torch.no_grad(), flowkern.backend("cpu"):
            call()
    return found


LARGE = {"affine": 2**18, "spline": 2**17, "masked forward": 2**14, "masked inverse": 2**14, "solve": 2**14}


def _calls(share):
    sizes = {name: int(count * share) for name, count in LARGE.items()}
    for name, op in (("affine", "affine_coupling"), ("spline", "rational_quadratic_spline")):
        case = replace(coupling.TYPICAL[op], width=64, features=64, select="all", batch=(sizes[name],))
        x, params = torch.empty(*case.batch, 64), torch.empty(*case.batch, 64, case.per_feature)
        yield name, lambda case=case, x=x, params=params: case(x, params)
    case = masked.Case("large", 64, (256, 256), batch=2)
    tensors = case.tensors(torch.float32)[1]
    for name in ("masked forward", "masked inverse"):
        x = torch.empty(sizes[name], 64)
        yield name, lambda x=x, inverse="inverse" in name: case(x, tensors, inverse)
    solve = ode.Case(features=8, hidden=(64, 64), activations=("tanh", "tanh"), steps=16, batch=2, method="rk4")
    tensors, noise = solve.tensors(torch.float32)
    y = torch.empty(sizes["solve"], 8)
    yield "solve", lambda: solve.solve(tensors | {"y": y}, noise)


@contextlib.contextmanager
def _recorded(found, name, runs=True):
    """Inside, every call of the emulation is added to `found`, before it is run."""

    def recording(run):
        def record(op, call, x):
            found.append(Problem(name, op, x.dtype == torch.float64, *_parts(call)))
            if runs:
                run(op, call, x)

        return record

    modules = [m for name, m in [*sys.modules.items()] if name.startswith("tests.cases.") and name.endswith("emulated")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            if hasattr(module, "run"):
                stack.enter_context(mock.patch.object(module, "run", recording(module.run)))
        yield


class Problem(NamedTuple):
    """A call: `blocks` are the structure that it takes, and the arrays that it points to.

    pointers: (block, place in it, block whose address is there).
    tensors: (block, place in it, bytes, contents or None).
    """

    name: str
    op: str
    wide: bool
    blocks: list
    pointers: list
    tensors: list


def _parts(call):
    """Of a `Problem`, from a structure of ctypes."""
    arrays = {ctypes.addressof(array): array for array in _arrays(call._objects)}
    values, pointers, tensors = [call], [], []
    for block, value in enumerate(values):  # which grows
        for at, part in _leaves(value, 0):
            if isinstance(part, Tensor):
                if part.data:
                    kept = ctypes.string_at(part.data, part.bytes) if part.bytes <= MOST else None
                    tensors.append((block, at, part.bytes, kept))
            elif part:
                pointers.append((block, at, len(values)))
                values.append(arrays[ctypes.cast(part, ctypes.c_void_p).value])
    return [bytes(value) for value in values], pointers, tensors


def _arrays(objects):
    """All that a structure keeps alive."""
    if isinstance(objects, ctypes.Array):
        yield objects
    elif isinstance(objects, (dict, tuple)):
        for value in objects.values() if isinstance(objects, dict) else objects:
            yield from _arrays(value)


def _leaves(value, at):
    """(place, value) of the tensors and pointers in it."""
    if isinstance(value, (Tensor, ctypes._Pointer)):
        yield at, value
    elif isinstance(value, ctypes.Array):
        size = ctypes.sizeof(value._type_)
        for number, part in enumerate(value):
            yield from _leaves(part, at + number * size)
    elif isinstance(value, ctypes.Structure):
        for name, _ in value._fields_:
            yield from _leaves(getattr(value, name), at + getattr(type(value), name).offset)


def write(problems, path):
    """As driver.cu reads it."""
    with Path(path).open("wb") as file:

        def numbers(*values):
            file.write(struct.pack(f"<{len(values)}q", *values))

        def text(value):
            numbers(len(value))
            file.write(value)

        numbers(len(problems))
        for problem in problems:
            text(problem.name.encode()), text(problem.op.encode()), numbers(problem.wide, len(problem.blocks))
            for block in problem.blocks:
                text(block)
            numbers(len(problem.pointers), *itertools.chain.from_iterable(problem.pointers))
            numbers(len(problem.tensors))
            for block, at, size, contents in problem.tensors:
                numbers(block, at, size, RANDOM if contents is None else CONTENTS)
                file.write(contents or b"")

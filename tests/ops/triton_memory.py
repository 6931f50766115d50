"""Triton's interpreter with every access checked, which it would make with any address, in any order.

A kernel reads and writes its tensors alone, and between two barriers no element of a tile touches what
another one writes. (Elements at one place of tiles of one shape are taken to be one thread's.)
"""

import contextlib
from unittest import mock

import numpy
import torch
from triton.runtime import interpreter


@contextlib.contextmanager
def checked():
    """Inside, an access that is out of bounds or races with an earlier one raises an IndexError."""
    launch, builder = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder
    load, store, begin = builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx
    memory = _Memory()

    def launched(self, *arguments, **options):
        memory.launch(self.fn.__name__, (*arguments, *options.values()))
        return launch(self, *arguments, **options)

    def loaded(self, pointers, mask, *rest):
        memory.access("reads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def stored(self, pointers, value, mask, *rest):
        memory.access("writes", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def begun(self, *index):
        memory.barrier()
        return begin(self, *index)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launched),
        mock.patch.multiple(
            builder, create_masked_load=loaded, create_masked_store=stored, set_grid_idx=begun,
            create_barrier=lambda self: memory.barrier(),
        ),
    ):  # fmt: skip
        yield


class _Memory:
    """What a kernel may touch, and what its program has touched since the last barrier."""

    def launch(self, kernel, arguments):
        self.kernel, self.shapes = kernel, {}
        tensors = [t for t in arguments if isinstance(t, torch.Tensor) and t.numel()]
        self.begins, self.ends = _union(map(_extent, tensors))

    def barrier(self):
        self.touched = []

    def access(self, does, pointers, mask):
        used = mask.data.astype(bool)
        addresses = pointers.data[used].astype(numpy.uint64)
        if addresses.size == 0:
            return
        size = numpy.uint64(max(pointers.get_element_ty().primitive_bitwidth // 8, 1))
        found = numpy.searchsorted(self.begins, addresses, side="right")
        inside = (found > 0) & (addresses + size <= numpy.append(self.ends, 0)[found - 1])
        if not inside.all():
            raise IndexError(f"{self.kernel} {does} {size} bytes that no tensor of its launch holds")
        shape = self.shapes.setdefault(used.shape, len(self.shapes))
        lanes = numpy.flatnonzero(used) + (shape << 32)
        for other in self.touched:
            if "writes" in (does, other[0]) and _race(addresses, lanes, *other[1:]):
                raise IndexError(f"{self.kernel} {does} what another element {other[0]}, no barrier in between")
        order = numpy.argsort(addresses, kind="stable")
        self.touched.append((does, addresses[order], lanes[order]))


def _race(addresses, lanes, others, other_lanes):
    """Whether an address is among the sorted others, which another lane touched."""
    if addresses.max() < others[0] or others[-1] < addresses.min():
        return False
    first = numpy.searchsorted(others, addresses)
    count = numpy.searchsorted(others, addresses, side="right") - first
    there = count > 0
    return bool((there & ((count > 1) | (other_lanes[first * there] != lanes))).any())


def _union(extents):
    """Begins and ends of the memory that some of the extents cover."""
    begins, ends = [], []
    for begin, end in sorted(extents):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    return numpy.array(begins, numpy.uint64), numpy.array(ends, numpy.uint64)


def _extent(tensor):
    """Where the memory begins and ends that a tensor takes, from its first to its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize

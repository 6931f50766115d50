"""Triton's interpreter with every access checked: it reads and writes nothing but the kernel's tensors.

What the interpreter is handed it would do with any address, as a GPU would.
"""

import contextlib
from unittest import mock

import numpy
import torch
from triton.runtime import interpreter


@contextlib.contextmanager
def checked():
    """Inside, an access that is not within one of the tensors of a launch raises an IndexError."""
    launch, builder = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    tensors = []

    def launched(self, *arguments, **options):
        given = [t for t in (*arguments, *options.values()) if isinstance(t, torch.Tensor)]
        tensors[:] = [self.fn.__name__, *_union(given)]
        return launch(self, *arguments, **options)

    def loaded(self, places, mask, *rest):
        _check("reads", tensors, places, mask)
        return load(self, places, mask, *rest)

    def stored(self, places, value, mask, *rest):
        _check("writes", tensors, places, mask)
        return store(self, places, value, mask, *rest)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launched),
        mock.patch.object(builder, "create_masked_load", loaded),
        mock.patch.object(builder, "create_masked_store", stored),
    ):
        yield


def _union(tensors):
    """Where the memory begins and ends that some tensor takes, from its first to its last element."""
    begins, ends = [], []
    for begin, end in sorted(_extent(t) for t in tensors if t.numel()):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    return numpy.array(begins, numpy.uint64), numpy.array(ends, numpy.uint64)


def _extent(tensor):
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


def _check(does, tensors, places, mask):
    kernel, begins, ends = tensors
    bytes_ = max(places.get_element_ty().primitive_bitwidth // 8, 1)
    first = places.data[mask.data.astype(bool)].astype(numpy.uint64)
    if first.size == 0:
        return
    found = numpy.searchsorted(begins, first, side="right")
    inside = (found > 0) & (first + numpy.uint64(bytes_) <= numpy.append(ends, 0)[found - 1])
    if not inside.all():
        raise IndexError(f"{kernel} {does} {bytes_} bytes that no tensor of its launch holds")

"""The transforms of a flow as one call of `ops.flow_program`.

A library's module says what each of its transforms adds to a program (`Part`). Consecutive parts
become one `Segment`; a transform that has no part is called as it is. Parameters are read at every call;
what depends on structure alone is kept (fusion.py).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from flowkern import _torch, backends
from flowkern.ops._flow_program import KERNELS, Conditioned, Program, evaluate

_PLAIN = frozenset((torch.Tensor, nn.Parameter))
_DTYPES = (torch.float32, torch.float64)


class Computed(NamedTuple):
    """A tensor that is computed at every call: function(dtype of x, *the tensors at these places)."""

    function: Callable
    places: tuple


class Part(NamedTuple):
    """What one transform adds to a program.

    steps: its steps, in the order of the transform's forward.
    slots: for each tensor of the steps, where it is: (dictionary, key), or a `Computed`.
    context: how many features of the context it reads; 0 for none.
    features: how many features it transforms; None for any number.
    bounded: whether it gives NaN where the library raises an error.
    """

    steps: tuple
    slots: tuple = ()
    context: int = 0
    features: int | None = None
    bounded: bool = False


# Whether a program may run.


def allowed(module, x):
    """Whether nothing around this call needs each layer for itself: tracing, a transform of torch.func,
    forward mode, autocast, a mode that watches operations, hooks of all modules, or another backend."""
    if torch.compiler.is_compiling():
        return False
    choice = backends._choice.name or backends._environment
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and (choice == "reference" or "cpu" in KERNELS and choice in (None, "cpu"))
        and not _torch.observed()
        and not torch.is_autocast_enabled("cpu")
        and not _torch.dispatch_modes()
        and not _torch.has_global_hooks()
        and not _torch.is_replica(module)
    )


def fits(x, features):
    """Whether x is a plain tensor (N, features) on the CPU in a dtype of the kernels."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.dim() == 2
        and x.shape[1] == features
        and x.dtype in _DTYPES
        and x.layout is torch.strided
    )


# Measured (bench/everywhere.py): the vendor's products of wider layers are faster, without and with gradients.
_WIDEST, _WIDEST_TRAINED = 512, 384  # hidden units
# Weights for each tensor that cost less than PyTorch's calls, and those for each row from which on a call gains.
_LIGHT, _LIGHT_TRAINED = 1 << 14, 10_000
_SHARE, _SHARE_TRAINED = 1 << 18, 1 << 17


def least_rows(program, trained):
    """From how many rows on one call is faster than one for each layer, without or with gradients.

    A call passes over all weights, and over their gradients to add them up: many weights need several rows, unless
    they are so many tensors that PyTorch's calls take longer. Autoregressive layers by themselves pass over them too.
    """
    if any(isinstance(step, Conditioned) and step.degrees.levels > 2 for step in program.steps):
        return 0
    if trained and program.widest > _WIDEST_TRAINED:
        return math.inf
    light, share = (_LIGHT_TRAINED, _SHARE_TRAINED) if trained else (_LIGHT, _SHARE)
    return 0 if program.weights <= light * program.tensors else 1 + program.weights / share


def known(fusion, module, x):
    """What is known of the module as it is now, or None where its own code computes this call.

    With few rows that code runs at once: it is right, whatever has changed.
    """
    if not allowed(module, x):
        return None
    least = fusion.least_rows.get(module.training)
    if least and x.numel() < least[torch.is_grad_enabled()] * x.shape[-1]:
        return None
    return fusion(module)


# The tensors of a program.


class Reader:
    """Reads the tensors of a program as they are now.

    Args:
        slots: as of a `Part`.
    """

    def __init__(self, slots):
        self.places = [slot for slot in slots if not isinstance(slot, Computed)]
        self.computed = [(i, *slot) for i, slot in enumerate(slots) if isinstance(slot, Computed)]
        self.shapes = [held[key].shape for held, key in self.places]

    def __call__(self, dtype):
        """The tensors in the program's order, or None where some do not fit the program or x's dtype."""
        try:
            tensors = [held[key] for held, key in self.places]
            if [tensor.shape for tensor in tensors] != self.shapes or not _are_plain(tensors, dtype):
                return None
            for i, compute, places in self.computed:
                tensors.insert(i, compute(dtype, *_sources(places, dtype)))
        except (KeyError, AttributeError, _Unfit):  # one of them is gone
            return None
        return tensors


class _Unfit(Exception):
    pass


def _are_plain(tensors, dtype):
    return _PLAIN.issuperset(map(type, tensors)) and all(tensor.dtype is dtype for tensor in tensors)


def _sources(places, dtype):
    tensors = [held[key] for held, key in places]
    if not _are_plain([t for t in tensors if t.is_floating_point() and t.dim()], dtype):
        raise _Unfit
    return tensors


# Segments.


class Segment(NamedTuple):
    """Transforms that run as one program.

    transforms: (module, whether it is inverted) of each.
    bounded: as of a `Part`.
    least_rows: with fewer rows one call is no gain, without and with gradients.
    """

    program: Program
    read: Reader
    transforms: tuple
    bounded: bool = False
    least_rows: tuple = (0, 0)

    @property
    def fused(self):
        """Whether the transforms are one call."""
        return True

    def note(self, names):
        count = len(self.transforms)
        return f"{count} transforms in one call" if count > 1 else "its transform in one call"

    def __call__(self, x, context, inverse):
        """y and l for x (N, D), or None where the transforms must compute them one by one."""
        tensors = self.tensors(x, context)
        return None if tensors is None else self.evaluate(x, context, inverse, tensors)

    def tensors(self, x, context):
        """Those of the program, if it takes x and context as they are."""
        program = self.program
        if not fits(x, program.features) or x.shape[0] < self.least_rows[torch.is_grad_enabled()]:
            return None
        if program.context and not (
            fits(context, program.context) and context.shape[0] == x.shape[0] and context.dtype is x.dtype
        ):
            return None
        return self.read(x.dtype)

    def evaluate(self, x, context, inverse, tensors):
        found = evaluate(x, self.program, tensors, context if self.program.context else None, inverse)
        return None if self.bounded and bool(found[1].isnan().any()) else found


class Apart(NamedTuple):
    """A transform that is called as it is, and why."""

    transforms: tuple
    reason: str

    @property
    def fused(self):
        """Whether the transform is one call with others."""
        return False

    def note(self, names):
        return f"{names.get(self.transforms[0][0], '?')} apart: {self.reason}"

    def __call__(self, x, context, inverse):
        return None

    def tensors(self, x, context):
        return ()


def run(pieces, call, x, context, inverse):
    """y and l of all pieces, or None where a segment does not take x and context as they are.

    call(module, whether it is inverted, x, context) is the library's own.
    """
    if len(pieces) == 1:
        return pieces[0](x, context, inverse)
    if any([piece.tensors(x, context) is None for piece in pieces]):
        return None
    total = None
    for piece in reversed(pieces) if inverse else pieces:
        for y, more in _results(piece, call, x, context, inverse):
            x, total = y, more if total is None else total + more
    return x, total


def _results(piece, call, x, context, inverse):
    """y and l, of the piece in one call or of each of its transforms."""
    result = piece(x, context, inverse)
    if result is not None:
        yield result
        return
    for module, inverted in reversed(piece.transforms) if inverse else piece.transforms:
        x, more = call(module, inverted != inverse, x, context)
        yield x, more


def why(variants):
    """Why nothing runs in one call."""
    apart = min(([p for p in pieces if not p.fused] for pieces in variants), key=len)
    return apart[0].reason if apart else "it has no transforms"


def on_rows(segment, x, context, inverse):
    """As the segment for x (…, D) and context (…, C), whose batch shapes broadcast."""
    if x.dim() == 0 or context is not None and (type(context) not in _PLAIN or context.dim() == 0):
        return None
    if x.dim() == 2 and (context is None or context.shape[:-1] == x.shape[:-1]):
        return segment(x, context, inverse)
    try:
        batch = x.shape[:-1] if context is None else torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    except RuntimeError:
        return None
    result = segment(_rows(x, batch), None if context is None else _rows(context, batch), inverse)
    return result and (result[0].reshape(*batch, x.shape[-1]), result[1].reshape(batch))


def _rows(tensor, batch):
    return tensor.expand(*batch, tensor.shape[-1]).reshape(math.prod(batch), tensor.shape[-1])


def pieces(parts, base=None):
    """The segments and the transforms between them, in order.

    parts: [((module, whether it is inverted), its `Part` or why it has none)].
    """
    found, run = [], []
    for transform, part in parts:
        reason = part if isinstance(part, str) else _too_wide(part)
        if reason:
            found += _segment(run, base) + [Apart((transform,), reason)]
            run = []
        else:
            run.append((transform, part))
    return found + _segment(run, base)


def _too_wide(part):
    """Why a program is slower than the library's products, whatever the number of rows; or None."""
    widths = [max(step.widths()[1:-1], default=0) for step in part.steps if isinstance(step, Conditioned)]
    if max(widths, default=0) > _WIDEST:
        return f"a hidden layer has {max(widths)} units, and over {_WIDEST} PyTorch's own products are faster"
    return None


def _segment(run, base):
    """[the segment of consecutive parts], or these apart from each other where one call is no gain."""
    steps = [_turned(step, inverted) for (_, inverted), part in run for step in _in_order(part.steps, inverted)]
    if not base and len(steps) < 2 and not any(isinstance(step, Conditioned) for step in steps):
        return [Apart((transform,), "alone, it needs no program") for transform, _ in run]
    slots = [slot for (_, inverted), part in run for slot in _slots(part, inverted)]
    try:
        features = next(part.features for _, part in run if part.features)
        program = Program(features, steps, max(part.context for _, part in run), base)
    except (StopIteration, ValueError) as error:
        return [Apart((transform,), f"no program of it: {error}") for transform, _ in run]
    if {part.features for _, part in run} - {None, features} or {part.context for _, part in run} - {
        0,
        program.context,
    }:
        return [Apart((transform,), "its neighbours have another number of features") for transform, _ in run]
    bounded = any(part.bounded for _, part in run)
    least = tuple(least_rows(program, trained) for trained in (False, True))
    return [Segment(program, Reader(slots), tuple(transform for transform, _ in run), bounded, least)]


def _in_order(steps, inverted):
    return reversed(steps) if inverted else steps


def _turned(step, inverted):
    return step._replace(inverse=not step.inverse) if inverted else step


def _slots(part, inverted):
    slots = iter(part.slots)
    groups = [[next(slots) for _ in range(step.tensors)] for step in part.steps]
    return [slot for group in _in_order(groups, inverted) for slot in group]

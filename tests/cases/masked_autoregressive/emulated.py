"""The dispatcher ops by the CUDA kernels in the emulation (emulated.cpp)."""

import ctypes
from dataclasses import replace

from flowkern.ops._masked_autoregressive import gradients, native
from tests.cases.masked_autoregressive import CASES as NAMED
from tests.cases.masked_autoregressive import Case
from tests.gpu.emulation.library import Tensor, run

_MASKED_SIZES = ("rows", "features", "levels", "layers", "parameters")
_MASKED_TENSORS = (
    "given", "known", "order", "ends", "out", "logabsdet", "grad_out", "grad_logabsdet", "tape"
)  # fmt: skip


class _MaskedCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _MASKED_SIZES),
        *((name, ctypes.c_int64) for name in ("inverse", "element")),
        ("kinds", ctypes.c_int64 * 2),
        ("constants", ctypes.c_double * 9),
        ("tensors", ctypes.POINTER(Tensor)),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("units", "activations", "skips")),
        ("slopes", ctypes.POINTER(ctypes.c_double)),
        ("terms", ctypes.POINTER(Tensor)),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("term_inputs", "term_activations")),
        ("term_slopes", ctypes.POINTER(ctypes.c_double)),
        *((name, Tensor) for name in _MASKED_TENSORS),
    ]


def _masked(x, tensors, order, ends, *rest):
    y, logabsdet = x.new_empty(x.shape), x.new_empty(x.shape[0])
    spec, terms = rest[:7], rest[7:] or ((), (), ())
    _run_masked(x, tensors, order, ends, spec, terms, given=x, out=y, logabsdet=logabsdet)
    return y, logabsdet


def _masked_backward(grad_y, grad_logabsdet, x, y, tape, tensors, order, ends, *spec):
    inverse = spec[3]
    grad_x = x.new_empty(x.shape)
    on_tape = x.new_empty(gradients.tape_rows(tensors) if tape else 0, x.shape[0])
    _run_masked(
        x, tensors, order, ends, spec, ((), (), ()), given=x, known=y if inverse else x, out=grad_x,
        grad_out=grad_y, grad_logabsdet=grad_logabsdet, tape=on_tape if tape else None,
    )  # fmt: skip
    return grad_x, on_tape


def _run_masked(x, tensors, order, ends, spec, terms, **more):
    if x.shape[0] == 0:  # the torch side does not launch then
        return
    activations, slopes, skips, inverse, element, kinds, constants = spec
    weights = tensors[::5]
    sizes = 3 * len(weights), len(weights), len(weights)
    of_terms, term_activations, term_slopes = (
        [*given, *[none] * (size - len(given))] for given, none, size in zip(terms, (None, 0, 1.0), sizes)
    )
    inputs = [-1 if context is None else context.shape[1] for context in of_terms[::3]]
    whole = [len(w) for w in weights], activations, skips, inputs, term_activations
    *lists, inputs, term_activations = [(ctypes.c_int64 * len(v))(*v) for v in whole]
    call = _MaskedCall(
        *x.shape, ends.shape[1] - 1, len(weights), len(weights[-1]) // x.shape[1],
        inverse, element, tuple(kinds), tuple(constants), _rows_of(tensors),
        *lists, (ctypes.c_double * len(slopes))(*slopes), _rows_of(of_terms),
        inputs, term_activations, (ctypes.c_double * len(term_slopes))(*term_slopes),
        **{name: Tensor.of(t) for name, t in {**more, "order": order, "ends": ends}.items()},
    )  # fmt: skip
    run("masked_autoregressive", call, x)


def _rows_of(tensors):
    """An array of them; a vector is the same for all rows."""
    given = [Tensor.of(t) for t in tensors]
    for one, tensor in zip(given, tensors):
        if tensor is not None and tensor.dim() == 1:
            one.stride[:] = (0, *tensor.stride(), 0)
    return (Tensor * len(given))(*given)


OPS = {"masked_autoregressive": _masked, "masked_autoregressive_backward": _masked_backward}
REPLACED = ((native, "leaves_tape", lambda *_: True),)
CASES = {
    **NAMED,
    # Tiles of 16 and 8 samples and in main memory, by direction and precision.
    "large-tiles": Case("large tiles", 2, (800,), batch=33),
    # More layers than are packed at a time.
    "many-layers": Case("many layers", 3, (4,) * 11, batch=3),
}


def with_rows(name, most):
    """A case with so many rows at the most."""
    return replace(CASES[name], batch=min(CASES[name].batch, most))


EVERY = [with_rows(name, 1) for name in ("exp", "k8", "k4_softclip")]  # in which every kernel runs
SAME_BITS = {name: with_rows(name, 33 if "rows" in name else 3) for name in CASES}
MOST_BLOCKS = 1

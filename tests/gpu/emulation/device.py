"""The raw ops of the dispatcher, by the CUDA kernels in the emulation, on CPU tensors."""

import contextlib
import ctypes
import functools
import re
from unittest import mock

import torch

import flowkern  # noqa: F401  (registers the ops that are replaced here)
from flowkern.ops._masked_autoregressive import gradients
from flowkern.ops._masked_autoregressive import native as masked
from flowkern.ops._neural_ode import native as solve
from flowkern.ops._probability_path import native
from tests.gpu.emulation import build

FORWARD, REVERSED, RANDOM = range(3)


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("stride", ctypes.c_int64 * 3)
    ]  # fmt: skip

    @classmethod
    def of(cls, tensor):
        if tensor is None:
            return cls()
        return cls(tensor.data_ptr(), _extent(tensor), tensor.stride())


def _extent(tensor):
    """Bytes from a tensor's first element to the end of its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.itemsize


_TENSORS = (
    "x", "params", "index", "bounds", "y", "logabsdet", "grad_y", "grad_logabsdet", "grad_params"
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 4),
        *((name, _Tensor) for name in _TENSORS),
        ("integers", ctypes.c_int64 * 3),
        ("numbers", ctypes.c_double * 9),
    ]


_PATH_TENSORS = (
    "x0", "x1", "t", "noise", "seed", "x_t", "u_t", "drawn", "grad_x", "grad_u", "grad_x0", "grad_x1",
    "grad_t",
)  # fmt: skip


class _PathCall(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 2),
        *((name, _Tensor) for name in _PATH_TENSORS),
        ("kind", ctypes.c_int64),
        ("sigma", ctypes.c_double),
    ]


class _StageCall(ctypes.Structure):
    _fields_ = [
        ("sizes", ctypes.c_int64 * 2), ("stages", ctypes.c_int64), ("y", _Tensor), ("y1", _Tensor),
        ("k", _Tensor * 8), ("weights", _Tensor), ("out", _Tensor), ("rtol", ctypes.c_double),
        ("atol", ctypes.c_double),
    ]  # fmt: skip


_SOLVE_SIZES = ("rows", "features", "layers", "stages", "intervals", "steps", "every", "directions")
_SOLVE_GRADS = (
    "grad_y", "grad_starts", "grad_sizes", "grad_row_bias", "grad_time", "grad_frequencies", "grad_closed"
)  # fmt: skip
_SOLVE_TENSORS = (
    "y", "starts", "sizes", "row_bias", "time", "frequencies", "closed", "epsilon", "ends", "sums", "kept",
    "grad_ends", "grad_sums", *_SOLVE_GRADS,
)  # fmt: skip
_LAYERS = 25  # the most, as problems.h has it


class _SolveCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SOLVE_SIZES, "kinetic", "jacobian", "adjoint", "backward")),
        *((name, ctypes.c_int64 * _LAYERS) for name in ("units", "activations")),
        ("weight", ctypes.c_double),
        ("slopes", ctypes.c_double * _LAYERS),
        ("a", ctypes.c_double * 28),
        ("b", ctypes.c_double * 8),
        ("c", ctypes.c_double * 8),
        *((name, _Tensor) for name in _SOLVE_TENSORS),
        *((name, _Tensor * _LAYERS) for name in ("weights", "biases", "grad_weights", "grad_biases")),
    ]


_MASKED_SIZES = ("rows", "features", "levels", "layers", "parameters")
_MASKED_TENSORS = (
    "given", "known", "order", "ends", "out", "logabsdet", "grad_out", "grad_logabsdet", "tape"
)  # fmt: skip


class _MaskedCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _MASKED_SIZES),
        *((name, ctypes.c_int64) for name in ("inverse", "element", "scale_first", "tails")),
        ("constants", ctypes.c_double * 9),
        ("tensors", ctypes.POINTER(_Tensor)),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("units", "activations", "skips")),
        ("slopes", ctypes.POINTER(ctypes.c_double)),
        ("terms", ctypes.POINTER(_Tensor)),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("term_inputs", "term_activations")),
        ("term_slopes", ctypes.POINTER(ctypes.c_double)),
        *((name, _Tensor) for name in _MASKED_TENSORS),
    ]


@functools.cache
def _library():
    return load(build.built(build.preloaded()))


def load(path):
    """A library of kernels; an entry point returns what was wrong, or None."""
    library = ctypes.CDLL(str(path))
    for op in ENTRIES.values():
        if hasattr(library, op):  # the CPU loops have no entry points for some
            getattr(library, op).restype = ctypes.c_char_p
    return library


def launched():
    """Names of the kernels that were launched in this process."""
    return _names("launched_kernels")


def kernels():
    """Names of all kernels in the library."""
    names = _names("all_functions")
    return {name for name in names if re.fullmatch(r"\w*kernel(<[^()]*>)?\([^()]*\)", name)}


def _names(function):
    entry = getattr(_library(), function)
    entry.restype = ctypes.c_char_p
    return {*entry().decode().splitlines()}


@contextlib.contextmanager
def configured(schedule=FORWARD, seed=0, most_blocks=2**31 - 1):
    """Inside, the threads of a block run in this order, and a grid has no more blocks than this."""
    _library().settings(schedule, seed, most_blocks)
    try:
        yield
    finally:
        _library().settings(FORWARD, 0, 2**31 - 1)


def _call(x, params, integers, numbers, tensors):
    return _Call(
        (*x.shape, *params.shape[1:]), integers=tuple(map(int, integers)), numbers=numbers,
        **{name: _Tensor.of(t) for name, t in tensors.items()},
    )  # fmt: skip


def _launch(op, x, params, integers, numbers, **tensors):
    _run(op, _call(x, params, integers, numbers, tensors | {"x": x, "params": params}), x)


def _run(op, call, x):
    report = getattr(_library(), op)(ctypes.byref(call), x.dtype == torch.float64)
    if report is not None:
        raise RuntimeError(build.located(report.decode(), _library()._name))


def _forward(op, x, params, index, bounds, integers, numbers):
    y, logabsdet = torch.empty(x.shape, dtype=x.dtype), x.new_empty(x.shape[0])
    if params.shape[1] == 0:  # the torch side does not launch then
        return y.copy_(x), logabsdet.zero_()
    _launch(op, x, params, integers, numbers, index=index, bounds=bounds, y=y, logabsdet=logabsdet)
    return y, logabsdet


def _backward(op, grad_y, grad_logabsdet, x, params, index, bounds, integers, numbers):
    grad_x, grad_params = torch.empty(x.shape, dtype=x.dtype), torch.empty_like(params)
    if params.shape[1] == 0:
        return grad_x.copy_(grad_y), grad_params
    _launch(
        op, x, params, integers, numbers, index=index, bounds=bounds, y=grad_x, grad_y=grad_y,
        grad_logabsdet=grad_logabsdet, grad_params=grad_params,
    )  # fmt: skip
    return grad_x, grad_params


def _spline(direction, count):
    def op(*arguments):
        tensors, (index, bound, inverse, tails, *numbers) = arguments[:count], arguments[count:]
        integers = (inverse, tails)
        name = "rational_quadratic_spline"
        return direction(name, *tensors, index, bound, integers, tuple(numbers))

    return op


def _affine(direction, count):
    def op(*arguments):
        tensors, (index, *integers) = arguments[:count], arguments[count : count + 4]
        numbers = arguments[count + 4 :]
        return direction("affine_coupling", *tensors, index, None, integers, numbers)

    return op


def _path(x0, x1, t, noise, seed, path, sigma):
    x_t, u_t, drawn = native.new_outputs(x0, t)
    tensors = dict(x0=x0, x1=x1, t=t, noise=noise, seed=seed, x_t=x_t, u_t=u_t, drawn=drawn)
    return _run_path(tensors, path, sigma, (x_t, u_t, drawn))


def _path_backward(grad_x, grad_u, of_t, x0, x1, t, noise, seed, path, sigma):
    grad_x0, grad_x1, grad_t = native.new_grads(x0, of_t)
    tensors = dict(
        x0=x0, x1=x1, t=t, noise=noise, seed=seed, grad_x=grad_x, grad_u=grad_u, grad_x0=grad_x0,
        grad_x1=grad_x1, grad_t=grad_t if of_t else None,
    )  # fmt: skip
    return _run_path(tensors, path, sigma, (grad_x0, grad_x1, grad_t))


def _run_path(tensors, path, sigma, outputs):
    x0 = tensors["x0"]
    given = {name: _Tensor.of(tensor) for name, tensor in tensors.items()}
    _run("probability_path", _PathCall(tuple(x0.shape), kind=path, sigma=sigma, **given), x0)
    return outputs


def _stage(y, k, weights):
    return _run_stage(y, None, k, weights, 0, 0, torch.empty_like(y))


def _error(y0, y1, k, weights, rtol, atol):
    sums = y0.new_empty(y0.shape[:1] or (1,))
    return _run_stage(y0, y1, k, weights, rtol, atol, sums.zero_() if y0.numel() == 0 else sums)


def _run_stage(y, y1, k, weights, rtol, atol, out):
    rows = y.shape[0] if y.dim() else 1
    by_row = weights if weights.dim() == 2 else weights.expand(max(rows, 1), -1)
    of = _Tensor.of
    sizes, stages = (rows, y.numel() // max(rows, 1)), tuple(map(of, k))
    call = _StageCall(sizes, len(k), of(y), of(y1), stages, of(by_row), of(out), rtol, atol)
    _run("runge_kutta_stage", call, y)
    return out


def _solve(*arguments):
    inputs, spec = arguments[:9], arguments[9:]
    ends, sums, kept = solve.outputs(*inputs[:2], *spec[5:7])
    _run_solve(inputs, spec, False, False, ends=ends, sums=sums, kept=kept.flatten(0, 1))
    return ends, sums, kept


def _solve_backward(grad_ends, grad_sums, ends, kept, adjoint, *arguments):
    inputs, spec = arguments[:9], arguments[9:]
    given = (*inputs[:7], *inputs[8])
    if len(inputs[0]):
        grads = [None if t is None else torch.empty_like(t) for t in given]
    else:  # the torch side does not launch then
        grads = [None if t is None else torch.zeros_like(t) for t in given]
    layers = len(spec[0]) + 1
    _run_solve(
        inputs, spec, adjoint, True, ends=ends, kept=kept.flatten(0, 1), grad_ends=grad_ends, grad_sums=grad_sums,
        grad_weights=grads[7 : 7 + layers], grad_biases=grads[7 + layers :],
        **dict(zip(_SOLVE_GRADS, grads)),
    )  # fmt: skip
    return [grad for grad in grads if grad is not None]


def _run_solve(inputs, spec, adjoint, backward, **more):
    *inputs, tensors = inputs
    activations, slopes, a, b, c, steps, every, weight, kinetic, jacobian = spec
    y, starts, directions = inputs[0], inputs[1], inputs[-1]
    layers, count = len(activations) + 1, 0 if directions is None else len(directions)
    tensors = dict(
        zip(_SOLVE_TENSORS, inputs), weights=tensors[:layers], biases=tensors[layers:], **more
    )  # fmt: skip
    sizes = (*y.shape, layers, len(b), len(starts), steps, every, count, kinetic, jacobian, adjoint, backward)
    units = [len(w) for w in tensors["weights"]]
    lists = [(ctypes.c_int64 * _LAYERS)(*v) for v in (units, activations)]
    numbers = [(ctypes.c_double * n)(*v) for n, v in ((_LAYERS, slopes), (28, a), (8, b), (8, c))]
    call = _SolveCall(*sizes, *lists, weight, *numbers)
    for name, value in tensors.items():
        some = isinstance(value, list)
        setattr(call, name, (_Tensor * _LAYERS)(*map(_Tensor.of, value)) if some else _Tensor.of(value))
    _run("neural_ode", call, y)


def _masked(x, tensors, order, ends, *rest):
    y, logabsdet = x.new_empty(x.shape), x.new_empty(x.shape[0])
    spec, terms = rest[:8], rest[8:] or ((), (), ())
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
    activations, slopes, skips, inverse, element, scale_first, tails, constants = spec
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
        inverse, element, scale_first, tails, tuple(constants), _rows_of(tensors),
        *lists, (ctypes.c_double * len(slopes))(*slopes), _rows_of(of_terms),
        inputs, term_activations, (ctypes.c_double * len(term_slopes))(*term_slopes),
        **{name: _Tensor.of(t) for name, t in {**more, "order": order, "ends": ends}.items()},
    )  # fmt: skip
    _run("masked_autoregressive", call, x)


def _rows_of(tensors):
    """An array of them; a vector is the same for all rows."""
    given = [_Tensor.of(t) for t in tensors]
    for one, tensor in zip(given, tensors):
        if tensor is not None and tensor.dim() == 1:
            one.stride[:] = (0, *tensor.stride(), 0)
    return (_Tensor * len(given))(*given)


OPS = {
    "affine_coupling": _affine(_forward, 2),
    "affine_coupling_backward": _affine(_backward, 4),
    "neural_ode": _solve,
    "neural_ode_backward": _solve_backward,
    "masked_autoregressive": _masked,
    "masked_autoregressive_backward": _masked_backward,
    "probability_path": _path,
    "probability_path_backward": _path_backward,
    "rational_quadratic_spline": _spline(_forward, 2),
    "rational_quadratic_spline_backward": _spline(_backward, 4),
    "runge_kutta_error": _error,
    "runge_kutta_stage": _stage,
}
# dispatcher op: the entry point that runs it
ENTRIES = {op: "runge_kutta_stage" if op == "runge_kutta_error" else op.removesuffix("_backward") for op in OPS}


@contextlib.contextmanager
def emulated(library=_library):
    """Inside, what calls itself backend "cpu" is the emulated CUDA one, or that of another library."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(globals(), _library=library))
        for name, op in OPS.items():
            stack.enter_context(mock.patch.object(torch.ops.flowkern, name, op))
        stack.enter_context(mock.patch.object(masked, "leaves_tape", lambda *_: True))
        yield

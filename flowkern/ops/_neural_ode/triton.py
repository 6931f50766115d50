"""The Triton backend of the neural ODE solve: packed parameters, tables, launches.

Triton compiles one binary per precision and kind of trace, whatever the network, its activations, the
method and the sizes.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from flowkern.ops._dispatcher import define
from flowkern.ops._neural_ode import native
from flowkern.ops._neural_ode import triton_kernels as kernels
from flowkern.ops._neural_ode.reference import Problem, Spec
from flowkern.ops._neural_ode.triton_field import ROWS
from flowkern.ops._neural_ode.triton_layout import parameters, table, unpack
from flowkern.ops._tables import on_device
from flowkern.ops._triton import unpipelined

_ROWS = ROWS.value
_PROGRAMS = 512  # four for each of some 130 multiprocessors
_WORKSPACE = 2**30  # bytes; fewer programs share it where the network is so large


@dataclass(frozen=True)
class Variant:
    """All that a binary is compiled for."""

    compute: tl.dtype
    backward: bool
    adjoint: bool
    row_bias: bool
    time: int  # 0: none, 1: φ(t) = t, 2: with frequencies
    trace: bool
    closed: int  # its dimensions, 0: none
    kinetic: bool
    jacobian: bool
    wide: int  # hidden units of a tile


def forward(y, *arguments):
    """ends (I, N, D), sums (I, 3, N), kept (I, C, N, D); arguments as `reference.forward` takes them."""
    return native.forward(y, *arguments, ops=torch.ops.flowkern_triton)


def backward(*arguments):
    """Gradients of y, starts, sizes, row_bias, time, frequencies, closed, directions (None), the tensors."""
    return native.backward(*arguments, ops=torch.ops.flowkern_triton)


def _launch_forward(y, *arguments):
    p = _problem(*arguments)
    ends, sums, kept = native.outputs(y, p.starts, p.spec.steps, p.spec.every)
    header, layers = table(p, False, False)
    if y.shape[0] > 0:
        programs = _programs(y, header.rows * _ROWS)
        variant = _variant(p, layers, False, False)
        _launch(kernels._forward_kernel, programs, y, p, _pack(p), header, layers, variant, ends, sums, kept)
    return ends, sums, kept


def _launch_backward(grad_ends, grad_sums, ends, kept, adjoint, y, *arguments):
    p = _problem(*arguments)
    params, (header, layers) = _pack(p), table(p, True, adjoint)
    programs = _programs(y, header.rows * _ROWS + len(params))
    grads, grad_y = y.new_zeros(programs, len(params)), y.new_empty(y.shape)
    grad_row_bias = None if p.row_bias is None else y.new_empty(p.row_bias.shape)
    if y.shape[0] > 0:
        _launch(
            kernels._backward_kernel, programs, y, p, params, header, layers,
            _variant(p, layers, True, adjoint), ends, kept, grad_ends, grad_sums, grad_y, grad_row_bias,
            grads, len(params),
        )  # fmt: skip
    of_starts, of_sizes, *others = unpack(grads.sum(0), p)
    some = (grad_y, of_starts, of_sizes, grad_row_bias, *others)
    return [grad for grad in some if grad is not None]


def _problem(*arguments):
    return Problem(Spec(*arguments[8:]), *arguments[:8])


def _launch(kernel, programs, y, p, params, header, layers, variant, *rest):
    places = on_device(header + sum(layers, ()), torch.int32, y.device)
    slopes = on_device((1.0, *p.spec.slopes), y.dtype, y.device)
    tableau = on_device(_tableau(p.spec), y.dtype, y.device)
    workspace = y.new_empty(programs * header.rows * _ROWS)
    count, strides = 0, (0, 0, 0)
    if p.directions is not None:
        count, strides = len(p.directions), p.directions.stride()
    row_bias, directions = (y if t is None else t for t in (p.row_bias, p.directions))  # tuples hold no None
    with torch.cuda.device_of(y):
        kernel[(programs,)](
            y.shape[0], len(p.starts), p.spec.steps, p.spec.every, p.layers, p.spec.stages, count, places, slopes,
            tableau, params, workspace, row_bias, directions, *strides, y, *rest, SPEC=variant,
            num_warps=8, enable_fp_fusion=True, **unpipelined(255),
        )  # fmt: skip


def _variant(p, layers, backward, adjoint):
    compute = tl.float64 if p.sizes.dtype == torch.float64 else tl.float32
    time = 0 if p.time is None else 1 if p.frequencies is None else 2
    closed = 0 if p.closed is None else p.closed.dim()
    trace = p.closed is not None or p.directions is not None
    widest = max((layer.units for layer in layers[1:-1]), default=1)
    return Variant(
        compute, backward, adjoint, p.row_bias is not None, time, trace, closed, p.spec.kinetic,
        p.spec.jacobian, 64 if widest > 32 else 32,
    )  # fmt: skip


def _programs(y, numbers):
    """The number of programs, each of which has this many numbers to itself."""
    return min(triton.cdiv(y.shape[0], _ROWS), _PROGRAMS, max(_WORKSPACE // (numbers * y.itemsize), 1))


def _tableau(spec):
    """Rows of a, filled up with zeros, then b, ones, c, and the weight of a direction."""
    s = spec.stages
    a = ((*spec.row(i), *(0.0,) * (s - i)) for i in range(s))
    return *sum(a, ()), *spec.b, *(1.0,) * s, *spec.c, spec.weight


def _pack(p):
    return torch.cat([t.flatten() for t in parameters(p)])


_library = define("flowkern_triton", native.OPS)
_library.impl("neural_ode", _launch_forward, "CompositeExplicitAutograd")
_library.impl("neural_ode_backward", _launch_backward, "CompositeExplicitAutograd")

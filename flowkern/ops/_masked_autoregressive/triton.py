"""The Triton backend of the masked autoregressive transform: tables, packed weights, launches.

Weights are sorted and packed anew in every call, so they are never stale; what depends on the shape
of the conditioner alone is kept. Triton compiles one binary per element transform and precision,
whatever the sizes and the activations.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from flowkern.ops._dispatcher import define
from flowkern.ops._masked_autoregressive import gradients, native
from flowkern.ops._masked_autoregressive import triton_kernels as kernels
from flowkern.ops._masked_autoregressive.element import SPLINE
from flowkern.ops._masked_autoregressive.reference import NO_TERMS, Spec, Terms
from flowkern.ops._masked_autoregressive.triton_layers import ROWS, WIDE, Row
from flowkern.ops._rational_quadratic_spline.triton_element import spec_of
from flowkern.ops._tables import on_device
from flowkern.ops._triton import unpipelined

_ROWS, _WIDE = ROWS.value, WIDE.value
_PROGRAMS = 512  # four for each of some 130 multiprocessors
_WORKSPACE = 2**30  # bytes; fewer programs share it where the conditioner is so large


@dataclass(frozen=True)
class Variant:
    """All that a binary is compiled for; constants too, as Triton would pass them as float32."""

    compute: tl.dtype
    inverse: bool
    backward: bool
    tape: bool
    terms: bool
    parameters: int
    spline: object = None  # its Spec, or that of an affine element:
    shift: int = 0
    raw: int = 0
    kind: int = 0
    a: float = 0.0
    b: float = 0.0
    prefactor: float = 1.0
    shift_prefactor: float = 1.0


def forward(x, *arguments, terms=NO_TERMS):
    """y (N, D), logabsdet (N,); arguments as `reference.forward` takes them."""
    return native.forward(x, *arguments, terms=terms, ops=torch.ops.flowkern_triton)


def backward(*arguments):
    """grad_x (N, D) and the gradients of tensors that are needed."""
    return native.backward(*arguments, ops=torch.ops.flowkern_triton)


def _launch_forward(x, tensors, order, ends, *rest):
    spec, terms = Spec(*rest[:7]), Terms(*rest[7:])
    y, logabsdet = x.new_empty(x.shape), x.new_empty(x.shape[0])
    arguments = (x, *x.stride(), y, logabsdet)
    variant = _variant(x, tensors, spec, False, False, bool(terms.tensors))
    _launch(kernels._forward_kernel, x, tensors, order, ends, spec, terms, variant, arguments)
    return y, logabsdet


def _launch_backward(grad_y, grad_logabsdet, x, y, tape, tensors, order, ends, *spec):
    spec = Spec(*spec)
    grad_x = x.new_empty(x.shape)
    on_tape = x.new_empty(gradients.tape_rows(tensors) if tape else 0, x.shape[0])
    known = y if spec.inverse else x
    arguments = (
        x, *x.stride(), known, *known.stride(), grad_y, *grad_y.stride(),
        grad_logabsdet, *grad_logabsdet.stride(), grad_x, on_tape,
    )  # fmt: skip
    variant = _variant(x, tensors, spec, True, tape, False)
    _launch(kernels._backward_kernel, x, tensors, order, ends, spec, NO_TERMS, variant, arguments)
    return grad_x, on_tape


def _launch(kernel, x, tensors, order, ends, spec, terms, variant, arguments):
    rows = x.shape[0]
    if rows == 0:
        return
    sizes = (x.shape[1], *(weight.shape[0] for weight in tensors[::5]))
    table = on_device(_table(sizes, ends.shape[1], spec, tensors, terms), torch.int64, x.device)
    lacking = (1.0,) * (len(spec.slopes) - len(terms.slopes))
    slopes = on_device((1.0, *spec.slopes, 1.0, *terms.slopes, *lacking), torch.float64, x.device)
    ranks = _ranks(ends, max(sizes[:-1]))
    planes = (4 if variant.backward else 2) * sum(sizes) * _ROWS
    programs = min(triton.cdiv(rows, _ROWS), _PROGRAMS, max(_WORKSPACE // (planes * x.itemsize), 1))
    levels, widest = ends.shape[1] - 1, max(sizes[1:-1], default=sizes[0])
    warps = 8 if variant.compute == tl.float64 else 4  # a value then takes two registers
    with torch.cuda.device_of(x):
        kernel[(programs,)](
            rows, sum(sizes), levels, max(_WIDE * levels // widest, 1), len(sizes) - 1,
            ranks.shape[1], table, slopes, order.contiguous(), ends.contiguous(), ranks,
            _weights(tensors[::5], order.split(sizes[:-1])), *_vectors(tensors, terms),
            x.new_empty(programs * planes), *arguments, SPEC=variant,
            num_warps=warps, enable_fp_fusion=True,
            **unpipelined(168 if warps == 4 and not variant.backward else 255),  # three blocks, or less
        )  # fmt: skip


def _variant(x, tensors, spec, backward, tape, terms):
    compute = tl.float64 if x.dtype == torch.float64 else tl.float32
    parameters = tensors[-5].shape[0] // x.shape[1]
    common = (compute, spec.inverse, backward, tape, terms, parameters)
    if spec.element == SPLINE:
        (tails, knots), box, constants = spec.kinds, spec.constants[:4], spec.constants[4:]
        shape = spec_of(parameters, compute, spec.inverse, tails, *box, knots, *constants)  # type: ignore[call-arg]
        return Variant(*common, shape)
    scale_map, scale_first = spec.kinds
    shift = int(scale_first and parameters == 2)
    return Variant(*common, None, shift, 1 - shift, scale_map, *spec.constants)


def _table(sizes, columns, spec, tensors, terms):
    """The table of layers, from the sizes of all layers and the number of columns of ends."""
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    tape = gradients.starts(tensors)
    table, weight, next_row = [Row(0, sizes[0])], 0, {1: 0, 2: 0}
    for k in range(1, len(sizes)):
        last, skip = k + 1 == len(sizes), spec.skips[k - 1]
        places = []
        for tensor in tensors[5 * k - 4 : 5 * k]:
            kind = 0 if tensor is None else tensor.dim()
            places += [next_row.get(kind, 0), kind]
            if kind:
                next_row[kind] += sizes[k]
        places += _places_of_term(k - 1, terms, sizes[k], next_row)
        table.append(Row(
            starts[k], sizes[k], sizes[k] // sizes[0] if last else 1, 0 if last else starts[k],
            1 if last else k * columns, weight, spec.activations[k - 1],
            -1 if skip < 0 else starts[skip + 1], *places,
            *(tape.get((kind, k - 1), -1) for kind in ("u", "v", "gate", "gain", "offset")),
        ))  # fmt: skip
        weight += sizes[k] * sizes[k - 1]
    return tuple(table)


def _places_of_term(layer, terms, units, next_row):
    """The table's entries of a layer's term, which the shared numbers and the rows then end with."""
    context, _, bias = terms.tensors[3 * layer : 3 * layer + 3] or (None,) * 3
    if context is None:
        return 0, 0, 0, 0, 0, 0
    weight, row, inputs = next_row[1], next_row[2], context.shape[1]
    next_row[1] += units * inputs
    places = weight, next_row[1], int(bias is not None), row, inputs, terms.activations[layer]
    next_row[1] += 0 if bias is None else units
    next_row[2] += inputs
    return places


def _ranks(ends, width):
    """The rank of the unit at each place, for the layers' features, hidden units and outputs."""
    places = torch.arange(width, device=ends.device).expand(ends.shape[0], width).contiguous()
    ranks = torch.searchsorted(ends, places, right=True)
    return torch.cat((ranks, ranks[:1] - 1))


def _weights(weights, orders):
    """All weights in one row, inputs and units sorted by rank; outputs follow their features."""
    per_feature = weights[-1].shape[0] // len(orders[0])
    outputs = orders[0].unsqueeze(1) * per_feature + torch.arange(per_feature, device=orders[0].device)
    places = zip(weights, (*orders[1:], outputs.flatten()), orders)
    return torch.cat([weight[to.unsqueeze(1), of].flatten() for weight, to, of in places])


def _vectors(tensors, terms):
    """All biases, gates, gains and offsets, and the terms' tensors, in the table's order: those shared
    by the samples, and (rows, N) the others."""
    shared, rows = [tensors[0].new_empty(0)], [tensors[0].new_empty(0)]
    for k in range(len(tensors) // 5):
        for tensor in filter(_given, tensors[5 * k + 1 : 5 * k + 5]):
            if tensor.dim() == 1:
                shared.append(tensor)
            else:
                rows.append(tensor.mT.flatten())
        context, *others = terms.tensors[3 * k : 3 * k + 3] or (None,)
        shared += (tensor.flatten() for tensor in filter(_given, others))
        rows += [] if context is None else [context.mT.flatten()]
    return torch.cat(shared), torch.cat(rows)


def _given(tensor):
    return tensor is not None


_OF_GPUS = ("masked_autoregressive", "masked_autoregressive_backward")
_library = define("flowkern_triton", {name: native.OPS[name] for name in _OF_GPUS})
_library.impl("masked_autoregressive", _launch_forward, "CompositeExplicitAutograd")
_library.impl("masked_autoregressive_backward", _launch_backward, "CompositeExplicitAutograd")

"""The masked autoregressive transform in plain PyTorch: the specification of every kernel.

Arguments of all backends, after x (N, D):
    spec: a `Spec`, plain numbers.
    order, ends, ranks: as from `Degrees.on`.
    tensors: for each layer weight, bias, gate, gain and offset, None where it has none.

Kernels take the context's terms as they are where no gradient is wanted; what they add is `folded`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from flowkern.ops import _activation
from flowkern.ops._activation import Activation
from flowkern.ops._affine_coupling import reference as affine
from flowkern.ops._arguments import in_dtype, without_autocast
from flowkern.ops._masked_autoregressive.conditioner import masks
from flowkern.ops._masked_autoregressive.element import SPLINE
from flowkern.ops._rational_quadratic_spline import reference as spline


class Spec(NamedTuple):
    """What is no tensor: of each layer its activation's code and slope and its skip (−1 for none);
    the direction; and of the element transform what its `numbers()` gives."""

    activations: tuple
    slopes: tuple
    skips: tuple
    inverse: bool
    element: int
    kinds: tuple
    constants: tuple


class Terms(NamedTuple):
    """The contexts' terms of the layers up to the last that has one.

    tensors: for each the context (N, inputs), its weight and its bias, None where it has none.
    activations, slopes: one for each.
    """

    tensors: list
    activations: tuple
    slopes: tuple

    @staticmethod
    def of(terms: Sequence[Any]) -> "Terms":
        """From a `ContextTerm`, or None, for each layer."""
        while terms and terms[-1] is None:
            terms = terms[:-1]
        kinds = [Activation.of("identity" if term is None else term.activation) for term in terms]
        tensors = [t for term in terms for t in (term or (None,) * 3)[:3]]
        codes, slopes = zip(*(kind.numbers() for kind in kinds)) if kinds else ((), ())
        return Terms(tensors, codes, slopes)


NO_TERMS = Terms([], (), ())


def forward(
    x: torch.Tensor, spec: Any, order: Any, ends: torch.Tensor, ranks: Any, *tensors: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, D) -> y (N, D), logabsdet (N,); differentiable to any order."""
    dtype = compute_dtype(x, tensors)
    given: list[Any] = [t if t is None else t.to(dtype) for t in tensors]
    read = masks(x.shape[1], ranks, given[::5])
    layers = [(given[5 * k] * mask, *given[5 * k + 1 : 5 * k + 5]) for k, mask in enumerate(read)]
    if spec.inverse:
        y, logabsdet = _inverse(x.to(dtype), spec, layers, ranks[: x.shape[1]], ends.shape[1] - 1)
    else:
        y, logabsdet = _element(x.to(dtype), network(x.to(dtype), spec, layers), spec)
    return in_dtype(y, x.dtype), logabsdet


def compute_dtype(x: torch.Tensor, tensors: Sequence[torch.Tensor | None]) -> torch.dtype:
    """float64 if any tensor is, otherwise float32."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (x, *tensors))
    return torch.float64 if wide else torch.float32


def folded(layer):
    """The same `MaskedLayer` with its context's term in the bias, a row for each sample."""
    term, bias = layer.context, layer.bias
    given = [t for t in (*term[:3], bias) if t is not None]
    dtype = compute_dtype(layer.weight, given)
    c, weight, *_ = given = [t.to(dtype) for t in given]
    with without_autocast(c.device.type):
        rows = F.linear(c, weight, None if term.bias is None else given[2])
    rows = Activation.of(term.activation)(rows)
    return layer._replace(bias=rows if bias is None else rows + bias, context=None)


def network(x: torch.Tensor, spec: Spec, layers: Any) -> torch.Tensor:
    """The parameters (N, D, P) of every feature's transform."""
    u = x
    past: list[torch.Tensor] = []
    for (weight, bias, gate, gain, offset), code, slope, skip in zip(layers, spec.activations, spec.slopes, spec.skips):
        z = F.linear(u, weight)
        z = z if bias is None else z + bias
        z = z if gate is None else z * gate
        z = z if skip < 0 else z + past[skip]
        past.append(z)
        z = z if gain is None else z * gain
        z = z if offset is None else z + offset
        u = _activation.value(z, code, slope)
    features = x.shape[1]
    return u.view(*u.shape[:-1], features, u.shape[-1] // features)


def _element(x: torch.Tensor, params: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    return transformed(x, params, spec.inverse, spec.element, spec.kinds, spec.constants)


def transformed(
    x: torch.Tensor,
    params: torch.Tensor,
    inverse: bool,
    element: int,
    kinds: tuple[int, int],
    constants: tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, logabsdet) of an element whose `numbers()` are the last three, applied to every feature of x."""
    if element == SPLINE:
        tails, knots = kinds
        return spline.forward(x, params, None, None, inverse, tails, *constants[:4], knots, *constants[4:])  # type: ignore[call-arg, arg-type]
    scale_map, scale_first = kinds
    return affine.forward(x, params, None, inverse, bool(scale_first), scale_map, *constants)


def _inverse(
    y: torch.Tensor, spec: Spec, layers: Sequence[tuple], ranks: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass of the network for each degree; a feature is set once, when all before it are."""
    x = torch.zeros_like(y)
    for rank in range(1, levels + 1):
        known, logabsdet = _element(y, network(x, spec, layers), spec)
        x = torch.where(ranks == rank, known, x)
    return x, logabsdet


def backward(
    grad_y: torch.Tensor,
    grad_logabsdet: Any,
    x: Any,
    y: Any,
    needs: Any,
    spec: Any,
    order: Any,
    ends: torch.Tensor,
    ranks: torch.Tensor,
    *tensors: Any,
) -> tuple[torch.Tensor | None, ...]:
    """The vector-Jacobian product of `forward` by autograd: gradients of x and of each tensor."""
    given = [i for i, t in enumerate(tensors) if t is not None]

    def run(x: torch.Tensor, *some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every: list[torch.Tensor | None] = [None] * len(tensors)
        for i, tensor in zip(given, some):
            every[i] = tensor
        return forward(x, spec, order, ends, ranks, *every)

    _, pull, *_ = torch.func.vjp(run, x, *(tensors[i] for i in given))
    grad_x, *some = pull((grad_y, grad_logabsdet))
    grads = [None] * len(tensors)
    for i, grad in zip(given, some):
        grads[i] = grad
    return grad_x, *grads

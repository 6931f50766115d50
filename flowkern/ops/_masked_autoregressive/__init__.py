"""y_i = h(x_i; parameters(x_<i)) with a masked conditioner, its inverse, and the log-det of both."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from flowkern import backends
from flowkern.ops._activation import Activation
from flowkern.ops._arguments import check_tensor, constants
from flowkern.ops._function import is_plain
from flowkern.ops._masked_autoregressive.conditioner import (
    ContextTerm,
    Degrees,
    MaskedLayer,
    masks,
)
from flowkern.ops._masked_autoregressive.element import AffineElement, SplineElement
from flowkern.ops._masked_autoregressive.function import ROW_WISE, rule
from flowkern.ops._masked_autoregressive.native import KERNELS
from flowkern.ops._masked_autoregressive.reference import NO_TERMS, Spec, Terms, folded

_ROW_WISE = tuple(kind for kind, by_row in enumerate(ROW_WISE) if by_row)

__all__ = [
    "Activation",
    "AffineElement",
    "ContextTerm",
    "Degrees",
    "MaskedLayer",
    "SplineElement",
    "folded",
    "masked_autoregressive",
    "masks",
]


def masked_autoregressive(
    x: torch.Tensor,
    layers: Sequence[MaskedLayer],
    degrees: Degrees,
    element: AffineElement | SplineElement,
    *,
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y_i = h(x_i; p_i(x_<i)) and log|det J| = Σ_i log h'(x_i), or the inverse of both.

    The forward direction takes one pass of the conditioner; the inverse computes feature after feature, and
    uses each weight once.

    Args:
        x: (…, D), float32/float64, or float16/bfloat16 (computed in float32).
        layers: the conditioner, a sequence of `MaskedLayer`; the last gives P parameters for each
            feature, those of one feature next to each other. Batch dimensions of biases, gates and
            contexts broadcast with those of x.
        degrees: the `Degrees` of x's features and of the hidden layers' units.
        element: h, an `AffineElement` or a `SplineElement`.
        inverse: compute x from y instead.

    Returns:
        y (…, D) of x's dtype, and logabsdet (…,) in float32 (float64 if any input is).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        RuntimeError: the chosen backend cannot run here.

    Source: Papamakarios et al., Masked Autoregressive Flow (2017), eqs. 3–5 and section 3.1.

    Example:
        >>> import torch
        >>> from flowkern import ops
        >>> degrees = ops.Degrees([1, 2, 3], [[1, 2, 1, 2]])  # three features, four hidden units
        >>> layers = [ops.MaskedLayer(torch.randn(4, 3), activation="tanh"), ops.MaskedLayer(torch.randn(6, 4))]
        >>> y, logabsdet = ops.masked_autoregressive(torch.ones(5, 3), layers, degrees, ops.AffineElement())
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
        >>> x, negative = ops.masked_autoregressive(y, layers, degrees, ops.AffineElement(), inverse=True)
        >>> torch.allclose(x, torch.ones(5, 3), atol=1e-4) and torch.allclose(negative, -logabsdet, atol=1e-4)
        True
    """
    layers = tuple(layers)
    _check_tensor("x", x, x)
    _check_layers(x, layers, degrees)
    if not isinstance(element, (AffineElement, SplineElement)):
        raise TypeError(f"element: expected an AffineElement or a SplineElement, got {type(element).__name__}")
    element.parameters(layers[-1].weight.shape[0], x.shape[-1], x.dtype)
    return evaluate(x, layers, degrees, element, bool(inverse))


def evaluate(
    x: torch.Tensor,
    layers: list[MaskedLayer] | tuple[MaskedLayer, ...],
    degrees: Degrees,
    element: AffineElement | SplineElement,
    inverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op, or its inverse, for callers whose arguments are known to fit: it checks no more than
    the kernel does."""
    backend = backends.resolve(x.device.type, KERNELS)
    layers, terms = _with_terms(x, layers, backend)
    given = [t for layer in layers for t in layer.tensors()]
    flat, batch = _flattened(x, given, terms.tensors)
    spec, tensors = _spec(layers, element, inverse), (*degrees.on(x.device), *given)
    if terms.tensors:
        plain = spec, terms.activations, terms.slopes
        y, logabsdet = rule.with_terms(backend, plain, flat, *tensors, *terms.tensors)
    else:
        y, logabsdet = rule.apply(backend, spec, flat, *tensors)
    if len(batch) == 1:
        return y, logabsdet
    return y.reshape(*batch, x.shape[-1]), logabsdet.reshape(batch)


def _with_terms(
    x: torch.Tensor, layers: list[MaskedLayer] | tuple[MaskedLayer, ...], backend: str
) -> tuple[list[MaskedLayer] | tuple[MaskedLayer, ...], Terms]:
    """The layers, and the contexts' terms that the kernel takes; the others are now in the biases."""
    if all(layer.context is None for layer in layers):
        return layers, NO_TERMS
    tensors = (t for layer in layers for t in (*layer.tensors(), *(layer.context or ())[:3]))
    apart = backend != "reference" and is_plain((x, *tensors))
    layers = [
        layer if layer.context is None or apart and layer.context.context.dim() > 1 else folded(layer)
        for layer in layers
    ]
    terms = [layer.context for layer in layers]
    return layers, Terms.of(terms)


def _spec(
    layers: list[MaskedLayer] | tuple[MaskedLayer, ...], element: AffineElement | SplineElement, inverse: bool
) -> Spec:
    codes, slopes = zip(*(Activation.of(layer.activation).numbers() for layer in layers))
    code, maps, numbers = element.numbers()
    return Spec(
        codes,
        constants(*slopes),
        tuple(-1 if layer.skip is None else layer.skip for layer in layers),
        inverse,
        code,
        maps,
        constants(*numbers),
    )


def _flattened(x: torch.Tensor, tensors: Any, of_terms: Any) -> tuple[torch.Tensor, torch.Size]:
    """x as (N, D), and the batch; biases and gates among tensors become (units,) or (N, units), and
    the contexts among those of terms (N, inputs)."""
    places = [(tensors, i) for kind in _ROW_WISE for i in range(kind, len(tensors), 5)]
    places += [(of_terms, i) for i in range(0, len(of_terms), 3)]
    rows = [(of, i) for of, i in places if of[i] is not None and of[i].dim() > 1]
    batch = x.shape[:-1]
    if any(of[i].shape[:-1] != batch for of, i in rows):
        batch = _broadcast(batch, [of[i].shape[:-1] for of, i in rows])
    elif len(batch) == 1:
        return x, batch
    for of, i in rows:
        of[i] = _flat(of[i], batch)
    return _flat(x, batch), batch


def _broadcast(batch: torch.Size, others: Sequence[torch.Size]) -> torch.Size:
    try:
        return torch.broadcast_shapes(batch, *others)
    except RuntimeError:
        raise ValueError(
            "layers: the batch shapes of biases, gates and contexts, "
            f"{', '.join(map(str, map(tuple, others)))}, do not broadcast with that of the features, "
            f"{tuple(batch)}"
        ) from None


def _flat(tensor: torch.Tensor, batch: torch.Size) -> torch.Tensor:
    if tensor.shape[:-1] != batch:
        tensor = tensor.expand(*batch, tensor.shape[-1])
    return tensor if len(batch) == 1 else tensor.reshape(math.prod(batch), tensor.shape[-1])


def _check_tensor(name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    check_tensor(name, tensor, x)
    if tensor.dim() < 1:
        raise ValueError(f"{name}: expected shape (…, features), got {tuple(tensor.shape)}")


def _check_layers(x: torch.Tensor, layers: tuple[MaskedLayer, ...], degrees: Degrees) -> None:
    if not isinstance(degrees, Degrees):
        raise TypeError(f"degrees: expected a Degrees, got {type(degrees).__name__}")
    if len(layers) != len(degrees.sizes):
        raise ValueError(
            f"layers: expected {len(degrees.sizes)}, one more than degrees has hidden layers, got {len(layers)}"
        )
    if x.shape[-1] != degrees.sizes[0]:
        raise ValueError(f"degrees: of {degrees.sizes[0]} features, but x has {x.shape[-1]}")
    for k, layer in enumerate(layers):
        _check_layer(k, layer, layers, degrees, x)


def _check_layer(
    k: int, layer: MaskedLayer, layers: tuple[MaskedLayer, ...], degrees: Degrees, x: torch.Tensor
) -> None:
    if not isinstance(layer, MaskedLayer):
        raise TypeError(f"layers[{k}]: expected a MaskedLayer, got {type(layer).__name__}")
    weight, others = layer.weight, layer.tensors()[1:]
    _check_tensor(f"layers[{k}].weight", weight, x)
    last = k + 1 == len(layers)
    units = weight.shape[0] if last else degrees.sizes[k + 1]
    if weight.shape != (units, degrees.sizes[k]):
        raise ValueError(
            f"layers[{k}].weight: expected shape ({'outputs' if last else units}, "
            f"{degrees.sizes[k]}), got {tuple(weight.shape)}"
        )
    for name, row, tensor in zip(("bias", "gate", "gain", "offset"), ROW_WISE[1:], others):
        if tensor is not None:
            _check_vector(f"layers[{k}].{name}", tensor, units, row, x)
    if layer.context is not None:
        _check_term(f"layers[{k}].context", layer.context, units, x)
    if last:
        _check_last(k, layer)
    if layer.skip is not None:
        _check_skip(k, layer.skip, layers, degrees)


def _check_vector(name: str, tensor: torch.Tensor, units: int, row: bool, x: torch.Tensor) -> None:
    _check_tensor(name, tensor, x)
    if tensor.shape[-1] != units or tensor.dim() > 1 and not row:
        shape = f"(…, {units})" if row else f"({units},)"
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def _check_term(name: str, term: ContextTerm, units: int, x: torch.Tensor) -> None:
    if not isinstance(term, ContextTerm):
        raise TypeError(f"{name}: expected a ContextTerm, got {type(term).__name__}")
    _check_tensor(f"{name}.context", term.context, x)
    _check_tensor(f"{name}.weight", term.weight, x)
    wanted = units, term.context.shape[-1]
    if term.weight.shape != wanted:
        raise ValueError(f"{name}.weight: expected shape {wanted}, got {tuple(term.weight.shape)}")
    if term.bias is not None:
        _check_vector(f"{name}.bias", term.bias, units, False, x)
    Activation.of(term.activation)


def _check_last(k: int, layer: MaskedLayer) -> None:
    plain = layer.skip is None and layer.gate is None and layer.gain is None and layer.offset is None
    if not plain or Activation.of(layer.activation).kind != "identity":
        raise ValueError(f"layers[{k}]: the last has a weight, a bias and a context, and nothing else")


def _check_skip(k: int, skip: int, layers: tuple[MaskedLayer, ...], degrees: Degrees) -> None:
    if not 0 <= skip < k or layers[skip].weight.shape[0] != layers[k].weight.shape[0]:
        raise ValueError(f"layers[{k}].skip: expected an earlier layer of the same width, got {skip}")
    if not degrees.may_skip(skip, k):
        raise ValueError(f"layers[{k}].skip: a unit of layer {skip} has a higher degree than the one it is added to")

"""A flow's program in plain PyTorch, step by step: the specification of every kernel."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from flowkern.ops._activation import Activation
from flowkern.ops._arguments import in_dtype
from flowkern.ops._flow_program.steps import LAYER_TENSORS, LU, Conditioned, Linear, Permutation, Scale
from flowkern.ops._masked_autoregressive.reference import compute_dtype, transformed


def forward(
    x: torch.Tensor, context: torch.Tensor | None, program: Any, inverse: bool, *tensors: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, D), context (N, C) or None -> y (N, D), l (N,); differentiable to any order."""
    dtype = compute_dtype(x, (context, *tensors))
    y, l = x.to(dtype), x.new_zeros(x.shape[0], dtype=dtype)
    context = context if context is None else context.to(dtype)
    parts = program.slices()
    for step, begin, end in reversed(parts) if inverse else parts:
        own = [t.to(dtype) for t in tensors[begin:end]]
        y, more = _STEPS[type(step)](step, y, context, own, step.inverse != inverse)
        l = l + more
    if program.base == "normal" and not inverse:
        l = l - 0.5 * (y * y).sum(-1) - 0.5 * math.log(2 * math.pi) * program.features
    return in_dtype(y, x.dtype), l


def _conditioned(
    step: Conditioned, x: torch.Tensor, context: torch.Tensor | None, tensors: Sequence[torch.Tensor], inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    ranks = step.degrees.on(x.device)[2]
    layers = _read(step, tensors, ranks)
    of_features = ranks[: x.shape[1]]
    if not inverse:
        return _element(step, x, _network(step, layers, x, context), False)
    known = x if step.outputs is not None else torch.zeros_like(x)
    for rank in range(1, step.degrees.levels + 1):
        every, logabsdet = _element(step, x, _network(step, layers, known, context), True)
        known = torch.where(of_features == rank, every, known)
    return known, logabsdet


def _read(step: Conditioned, tensors: Sequence[torch.Tensor], ranks: torch.Tensor) -> list[dict]:
    """The tensors of each layer as a dictionary, weights as the degrees have them."""
    features, given = step.degrees.sizes[0], iter(tensors)
    layers = [dict.fromkeys(LAYER_TENSORS) | {name: next(given) for name in layer.tensors} for layer in step.layers]
    first, last = layers[0], layers[-1]
    columns = list(step.read())
    if step.layers[0].joint:
        first["term_weight"] = first["weight"][:, len(columns) :]
    outputs = [step.number(t, p) for t in range(len(step.transformed())) for p in range(step.parameters)]
    read = _masks(step, ranks, features)
    for layer, mask in zip(layers, read):
        layer["mask"] = mask
    first["mask"] = first["mask"][:, columns]
    inverse_order = torch.tensor(outputs, device=ranks.device).argsort()
    last["mask"] = last["mask"][inverse_order]
    for layer in layers:
        layer["weight"] = layer["weight"][:, : layer["mask"].shape[1]] * layer["mask"]
    return layers


def _masks(step: Conditioned, ranks: torch.Tensor, features: int) -> list[torch.Tensor]:
    """Which entries of each weight are read, outputs feature by feature as they are transformed."""
    before = ranks.split(step.degrees.sizes)
    transformed = list(step.transformed())
    last = (before[0][transformed] - 1).repeat_interleave(step.parameters)
    return [to.unsqueeze(-1) >= seen for to, seen in zip((*before[1:], last), before)]


def _network(step: Conditioned, layers: Any, x: torch.Tensor, context: Any) -> torch.Tensor:
    """The parameters (N, T, P) of every transformed feature."""
    u = x[:, list(step.read())]
    past: list[torch.Tensor] = []
    for spec, layer in zip(step.layers, layers):
        z = F.linear(u, layer["weight"], layer["bias"])
        if spec.term is not None:
            z = z + Activation.of(spec.term)(F.linear(context, layer["term_weight"], layer["term_bias"]))
        if spec.gate is not None:
            z = z * Activation.of(spec.gate)(F.linear(context, layer["gate_weight"], layer["gate_bias"]))
        z = z if spec.skip is None else z + past[spec.skip]
        past.append(z)
        z = z if layer["gain"] is None else z * layer["gain"]
        z = z if layer["offset"] is None else z + layer["offset"]
        u = Activation.of(spec.activation)(z)
    count = len(step.transformed())
    shape = (count, step.parameters) if step.interleaved else (step.parameters, count)
    u = u.unflatten(-1, shape)
    return u if step.interleaved else u.mT


def _element(
    step: Conditioned, x: torch.Tensor, params: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """h on the transformed features, the others as they are."""
    index = None if step.outputs is None else torch.tensor(step.outputs, device=x.device)
    part = x if index is None else x[:, index]
    y, logabsdet = transformed(part, params, inverse, *step.element.numbers())
    return (y if index is None else x.index_copy(1, index, y)), logabsdet


def _lu(
    step: LU, x: torch.Tensor, context: torch.Tensor | None, tensors: Sequence[torch.Tensor], inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    below, above, raw = tensors[:3]
    bias = tensors[3] if step.bias else None
    width = x.shape[1]
    diagonal = F.softplus(raw) + step.epsilon
    row, column = torch.tril_indices(width, width, -1, device=x.device)
    lower = torch.eye(width, dtype=x.dtype, device=x.device).index_put((row, column), below)
    row, column = torch.triu_indices(width, width, 1, device=x.device)
    upper = torch.diag(diagonal).index_put((row, column), above)
    logabsdet = diagonal.log().sum().expand(x.shape[0])
    if not inverse:
        return F.linear(F.linear(x, upper), lower, bias), logabsdet
    y = x if bias is None else x - bias
    y = torch.linalg.solve_triangular(lower.mT, y, upper=True, left=False, unitriangular=True)
    return torch.linalg.solve_triangular(upper.mT, y, upper=False, left=False), -logabsdet


def _permutation(
    step: Permutation, x: torch.Tensor, context: torch.Tensor | None, tensors: Sequence[Any], inverse: bool
) -> tuple[torch.Tensor, float]:
    order = torch.tensor(step.order, device=x.device)
    return x[:, order.argsort() if inverse else order], 0.0


def _scale(
    step: Scale, x: torch.Tensor, context: torch.Tensor | None, tensors: Sequence[torch.Tensor], inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    scale, shift = tensors[0], tensors[1] if step.shift else None
    log_scale = scale if step.logarithmic else scale.abs().log()
    scale = scale.exp() if step.logarithmic else scale
    logabsdet = log_scale.sum().expand(x.shape[0])
    if inverse:
        return (x if shift is None else x - shift) / scale, -logabsdet
    return (x * scale if shift is None else x * scale + shift), logabsdet


def _linear(
    step: Linear, x: torch.Tensor, context: torch.Tensor | None, tensors: Sequence[torch.Tensor], inverse: bool
) -> tuple[torch.Tensor, torch.Tensor | float]:
    if step.orthogonal:
        (matrix,) = tensors
        return F.linear(x, matrix.mT if inverse else matrix), 0.0
    matrix, back, log = tensors
    return F.linear(x, back if inverse else matrix), (-log if inverse else log).expand(x.shape[0])


_STEPS: dict[type, Callable[..., Any]] = {
    Conditioned: _conditioned,
    LU: _lu,
    Permutation: _permutation,
    Scale: _scale,
    Linear: _linear,
}

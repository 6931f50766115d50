"""Checks and views shared by the coupling ops: x as (N, D), params as (N, T, P), index as (T,)."""

import contextlib
import math
from typing import Any

import torch

from flowkern import _torch
from flowkern.ops._plain import is_abstract, plainly, unmapped

_HALVES = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float64, torch.float32, *_HALVES)


def compute_dtype(x: torch.Tensor, params: torch.Tensor) -> torch.dtype:
    """float64 if either tensor is, otherwise float32: half precision is only a storage format."""
    return torch.float64 if torch.float64 in (x.dtype, params.dtype) else torch.float32


def half(x: torch.Tensor, params: torch.Tensor) -> bool:
    """Whether a kernel that takes one dtype needs a converted copy of either."""
    return x.dtype in _HALVES or params.dtype in _HALVES


def check_tensor(name: str, tensor: Any, like: torch.Tensor | None = None, of: str = "x") -> None:
    """Raise an error unless `tensor` is dense, of floats, and on the device of `like`, named `of`."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {of} has, got {tensor.device}")


def check_tensors(x: torch.Tensor, params: torch.Tensor) -> None:
    """Raise an error that names the argument unless x (…, D) and params (…, T, P) fit each other."""
    check_tensor("x", x)
    check_tensor("params", params, x)
    if x.dim() < 1:
        raise ValueError(f"x: expected shape (…, features), got {tuple(x.shape)}")
    if params.dim() < 2:
        raise ValueError(f"params: expected shape (…, transformed features, parameters), got {tuple(params.shape)}")


def flatten(x: torch.Tensor, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:
    """Views of x as (N, D) and of params as (N, T, P), and the batch shape they broadcast to."""
    if x.dim() == 2 and params.dim() == 3 and x.shape[0] == params.shape[0]:
        return x, params, x.shape[:1]
    batch = _broadcast(x.shape[:-1], params.shape[:-2])
    x2 = _flat(x, batch, 1)
    params3 = _flat(params, batch, 2)
    return x2, params3, batch


def unflatten(y: torch.Tensor, logabsdet: torch.Tensor, batch: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """The results with their batch shape again; a view of itself would cost a node of the graph."""
    if len(batch) == 1:
        return y, logabsdet
    return y.reshape(*batch, y.shape[-1]), logabsdet.reshape(batch)


def _broadcast(x_batch: torch.Size, params_batch: torch.Size) -> torch.Size:
    if x_batch == params_batch:
        return x_batch
    try:
        return torch.broadcast_shapes(x_batch, params_batch)
    except RuntimeError:
        raise ValueError(
            f"params: batch shape {tuple(params_batch)} does not broadcast with that of x, {tuple(x_batch)}"
        ) from None


def _flat(tensor: torch.Tensor, batch: torch.Size, trailing: int) -> torch.Tensor:
    if tensor.shape[:-trailing] != batch:
        tensor = tensor.expand(*batch, *tensor.shape[-trailing:])
    if len(batch) == 1:
        return tensor
    return tensor.reshape(math.prod(batch), *tensor.shape[-trailing:])


def resolve_index(index: Any, mask: Any, x: torch.Tensor, features: int) -> torch.Tensor | None:
    """The transformed features as an int64 tensor (T,), or None where all are, in order.

    `mask` (D,) is True at the transformed features; it is sorted rather than searched, so that no
    shape depends on data (no host synchronisation, one graph under `torch.compile`).

    What depends on data is checked here where it can be looked at. Compiled for the CPU it is an assertion,
    or left to the kernel. Elsewhere the index of a wrong call is -1, for which kernels give NaN.
    """
    index, mask = unmapped("index", index), unmapped("mask", mask)
    if index is not None and mask is not None:
        raise ValueError("mask: give either index or mask, not both")
    if mask is not None:
        return _index_of_mask(_on_device_of(x, "mask", mask), x, features)
    if index is None:
        if features != x.shape[-1]:
            raise ValueError(
                f"params: {features} transformed features, but x has {x.shape[-1]}; "
                "name the transformed ones by index or mask"
            )
        return None
    index = _on_device_of(x, "index", index)
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"index: expected an int64 tensor of shape (T,), got {index.dtype} {tuple(index.shape)}")
    if index.shape[0] != features:
        raise ValueError(f"index: names {index.shape[0]} features, but params has {features}")
    on_cpu = index.device.type == "cpu"
    if torch.compiler.is_compiling():
        _check_count("index", features, x)
    elif on_cpu:
        _check_index(index, x.shape[-1])
    return index.contiguous() if on_cpu else _distinct_or_none(index)


def _check_count(name: str, features: int, x: torch.Tensor) -> None:
    if features > x.shape[-1]:
        raise ValueError(f"{name}: params has {features} transformed features, but x has {x.shape[-1]} in all")


def _on_device_of(x: torch.Tensor, name: str, values: torch.Tensor) -> torch.Tensor:
    if isinstance(values, torch.Tensor) and values.device == x.device:
        return values
    try:
        return torch.as_tensor(values, device=x.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"{name}: no tensor can be made of it on {x.device}: {error}") from None


def _index_of_mask(mask: torch.Tensor, x: torch.Tensor, features: int) -> torch.Tensor:
    width = x.shape[-1]
    if mask.dtype != torch.bool or tuple(mask.shape) != (width,):
        raise ValueError(f"mask: expected a bool tensor of shape ({width},), got {mask.dtype} {tuple(mask.shape)}")
    _check_count("mask", features, x)
    index = torch.argsort(mask.logical_not(), stable=True)[:features]
    if mask.device.type != "cpu":
        return torch.where(mask.sum() == features, index, -1)
    if torch.compiler.is_compiling():
        _torch.assert_async(mask.sum() == features, f"mask: expected to select {features} features, as params has")
    elif int(mask.sum()) != features:
        raise ValueError(f"mask: selects {int(mask.sum())} features, but params has {features}")
    return index


def _check_index(index: torch.Tensor, width: int) -> None:
    if _torch.is_wrapped(index) or index.numel() == 0:
        return
    # A layer passes the same index in every call: once checked, it is known by its version.
    written = version(index)
    state = None if written is None else (width, written)
    if state is not None and getattr(index, "_flowkern_checked", None) == state:
        return
    if is_abstract(index):
        return
    with plainly():
        _check_entries(index, width)
    index._flowkern_checked = state  # type: ignore[attr-defined]


def _check_entries(index: torch.Tensor, width: int) -> None:
    if int(index.min()) < 0 or int(index.max()) >= width:
        raise ValueError(f"index: expected entries in [0, {width}), got {index.tolist()}")
    if index.unique().numel() != index.numel():
        raise ValueError(f"index: names a feature twice: {index.tolist()}")


def _distinct_or_none(index):
    """index, or -1 in place of every entry where it names a feature twice: an error would wait for the device."""
    if torch.compiler.is_compiling():
        return _or_none(index)
    written = version(index)
    known = getattr(index, "_flowkern_checked", None)
    if written is None or known is None or known[0] != written:
        with plainly():
            known = written, _or_none(index)
        if not (index.is_cuda and torch.cuda.is_current_stream_capturing()):  # a graph's memory is used again
            index._flowkern_checked = known
    return known[1]


def _or_none(index: torch.Tensor) -> torch.Tensor:
    return torch.where(_distinct(index), index, -1)


def _distinct(index: torch.Tensor) -> torch.Tensor:
    return (index.sort().values.diff() != 0).all()


def selected(x: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """The columns of x (N, D) that an index names, of plain PyTorch; all for None. Raises where it names one twice."""
    if index is None:
        return x
    if not torch.jit.is_tracing():  # whose exporters know no assertions
        _torch.assert_async(_distinct(index), "index: names a feature twice")
    return x.index_select(-1, index)


def version(tensor: torch.Tensor) -> Any:
    """How often a tensor was written to; None if that is not counted, as in inference mode."""
    return None if tensor.is_inference() else tensor._version


def size(tensor: torch.Tensor, dim: int) -> int:
    """A size, as an integer: while torch.jit traces, sizes are tensors, and a product with one would be in float32."""
    return int(tensor.shape[dim]) if torch.jit.is_tracing() else tensor.shape[dim]


def constants(*numbers: float) -> tuple[float, ...]:
    """The numbers as floats. With dynamic shapes torch.compile turns floats into symbols, which torch 2.13's
    autograd.Function rejects, so each becomes a constant here: another value compiles another graph."""
    floats = tuple(map(float, numbers))
    return tuple(float.fromhex(x.hex()) for x in floats) if torch.compiler.is_compiling() else floats


def without_autocast(device_type: str) -> Any:
    """A context in which autocast is off. The meta device has no autocast, and torch 2.11 cannot trace the query."""
    return contextlib.nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """tensor in dtype. Under torch.compile, torch 2.11 drops the gradient of an output of a Function that
    went through a `to` which had nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)

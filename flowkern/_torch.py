"""Every private name of torch that flowkern uses, behind a function that says what for.

`make test-oldest` and `make test-newest` run the tests with the oldest and the newest torch: what a release of
torch renames is mended here. (Attributes of tensors and modules that torch documents, `_version`, `_parameters` and
`_buffers`, are used where they are needed.)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd import forward_ad
from torch.distributions.transforms import _InverseTransform
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["InverseTransform", "TorchDispatchMode"]

InverseTransform = _InverseTransform  # the class of `Transform.inv`, which torch.distributions does not export
_functorch = torch._C._functorch
_Function = TypeVar("_Function", bound=Callable)


# What surrounds a call.


def forward_mode() -> bool:
    """Whether forward-mode differentiation is on, by torch.func.jvp or torch.autograd.forward_ad."""
    return forward_ad._current_level >= 0


def transforming() -> bool:
    """Whether a transform of torch.func is on: grad, vmap, …"""
    return torch._C._are_functorch_transforms_active()


def tracing() -> bool:
    """Whether torch.jit.trace records: `torch.jit.is_tracing` without its checks for TorchScript."""
    return torch._C._is_tracing()


def observed() -> bool:
    """Whether forward mode, torch.jit.trace or a transform of torch.func sees the operations of a call: one of the
    three above, asked at once since every call asks."""
    return forward_ad._current_level >= 0 or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def dispatch_modes() -> int:
    """How many modes watch every operation (`TorchDispatchMode`)."""
    return torch._C._len_torch_dispatch_stack()


def has_global_hooks() -> bool:
    """Whether hooks of all modules are set, which a call that skips a module's `__call__` would miss."""
    return _has_any_global_hook()


def caches_parametrizations() -> bool:
    """Whether a `parametrize.cached()` block is open."""
    return bool(parametrize._cache_enabled)


@contextmanager
def without_transforms() -> Iterator[None]:
    """A context without torch.func transforms, inference mode and FakeTensorMode: its tensors can be kept.

    Gradients stay on or off, as they are: `inference_mode(False)` turns them on.
    """
    recorded = torch.is_grad_enabled()
    with temporarily_clear_interpreter_stack(), torch.inference_mode(False), unset_fake_temporarily():
        with torch.set_grad_enabled(recorded):
            yield


def without_modes() -> AbstractContextManager:
    """A context in which no `TorchDispatchMode` is on, so that numbers can be computed while exporting."""
    return _disable_current_modes()


# Tensors of torch.func and of FakeTensorMode.


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of torch.func has put the tensor into one of its own."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def wrappers(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor and those inside it, down to the plain one, which is the last."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        yield tensor
        tensor = _functorch.get_unwrapped(tensor)
    yield tensor


def mapped_dim(tensor: Tensor) -> int:
    """The dimension over which the outermost transform maps the tensor inside; −1 if it is no vmap."""
    return _functorch.maybe_get_bdim(tensor)


def is_mapped(tensor: Tensor) -> bool:
    """Whether the outermost transform of the tensor is torch.func.vmap."""
    return _functorch.is_batchedtensor(tensor)


def maps_over(tensor: Tensor) -> bool:
    """Whether any of the tensor's transforms is torch.func.vmap, so that it has no values to look at. A compiler
    cannot follow the question."""
    return not torch.compiler.is_compiling() and any(map(is_mapped, wrappers(tensor)))


def is_legacy_mapped(tensor: Tensor) -> bool:
    """Whether the tensor is one of PyTorch's older vmap, that of `torch.autograd.grad(…, is_grads_batched=True)`."""
    return _functorch.is_legacy_batchedtensor(tensor)


def legacy_level() -> int:
    """The number of the innermost older vmap."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def legacy_unmapped(tensor: Tensor, level: int) -> Tensor:
    """The tensor behind one of the older vmap, its mapped dimension first."""
    return torch._remove_batch_dim(tensor, level, 1, 0)


def legacy_mapped(tensor: Tensor, level: int) -> Tensor:
    """A tensor of the older vmap, mapped over its first dimension."""
    return torch._add_batch_dim(tensor, 0, level)


def is_fake(tensor: Tensor) -> bool:
    """Whether the tensor is one of FakeTensorMode, without values."""
    return isinstance(tensor, FakeTensor)


def is_alias(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors share their memory."""
    return torch._C._is_alias_of(tensor, other)  # type: ignore[attr-defined]


def any_mapped(tensors: Iterable[Any]) -> bool:
    """Whether any of them, some of which may be no tensors, is one of either vmap."""
    mapped, legacy = _functorch.is_batchedtensor, _functorch.is_legacy_batchedtensor
    return any([isinstance(tensor, Tensor) and (mapped(tensor) or legacy(tensor)) for tensor in tensors])


# Compilers, autograd and the dispatcher.


def apply_plainly(function: type[torch.autograd.Function], plain: tuple, tensors: Sequence[Tensor | None]) -> Any:
    """`function.apply(*plain, *tensors)`, which looks for tensors of ended transforms of torch.func: that takes
    longer than the rest of it, so only where there are any."""
    wrapped = _functorch.is_functorch_wrapped_tensor
    if any([t is not None and wrapped(t) for t in tensors]):
        return function.apply(*plain, *tensors)
    return super(torch.autograd.Function, function).apply(*plain, *tensors)  # type: ignore[misc]


def assert_async(condition: Tensor, message: str) -> None:
    """An assertion about a value that a compiled graph keeps, without waiting for a device."""
    torch._assert_async(condition, message)


def constant_result(function: _Function) -> _Function:
    """`torch.compiler.assume_constant_result`, without its import of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def compiled_for(op: str, keys: Iterable[str]) -> tuple[str, ...]:
    """For which of the dispatch keys, such as "cpu", an op flowkern::… has a kernel."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(key for key in keys if has_kernel(op, key.upper()))


def is_replica(module: nn.Module) -> bool:
    """Whether the module is a copy of `torch.nn.DataParallel`, whose parameters are plain attributes."""
    return "_is_replica" in module.__dict__

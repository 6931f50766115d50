"""Matrix products that stay float32 where the user lets torch round those of GPUs to TF32."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from flowkern.ops._dispatcher import define

_lock = threading.Lock()  # the setting is the process's


def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`torch.mm`, whatever precision is set for float32; compiled code runs it as one op, and as it is here."""
    return torch.ops.flowkern.float32_mm(a, b) if torch.compiler.is_compiling() else _mm(a, b)


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with _lock, _without_tf32():
        return torch.mm(a, b)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """torch has two settings, and no answer where they differ: the one that was used is changed, and restored."""
    matmul = torch.backends.cuda.matmul
    if matmul.fp32_precision != "tf32":
        yield
        return
    cpu = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    try:
        asked = torch.get_float32_matmul_precision()
    except RuntimeError:  # by the newer one alone
        asked = None
    if asked is None:
        matmul.fp32_precision = "ieee"
    else:
        matmul.allow_tf32 = False
    try:
        yield
    finally:
        if asked is None:
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision(asked)
            torch.backends.mkldnn.matmul.fp32_precision = cpu  # type: ignore[attr-defined]


def _fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


_library = define("flowkern", {"float32_mm": ("(Tensor a, Tensor b) -> Tensor", _fake)})
_library.impl("float32_mm", _mm, "CompositeExplicitAutograd")

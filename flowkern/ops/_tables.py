"""Small tensors of constants that kernels read on a device: made once, kept as long as the process.

A captured CUDA graph holds the address of what it reads, so none of them may ever be freed.
"""

import functools

import torch

from flowkern import _torch


@functools.cache
def on_device(values: tuple, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The values as a tensor; RuntimeError where a graph is captured that is the first to need them."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured, and this op has not run before with the same layers on this device: "
            "call it once before the capture, with gradients if the graph has them"
        )
    with _torch.without_transforms():
        return torch.tensor(values, dtype=dtype, device=device)

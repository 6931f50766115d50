"""Tensors of the meta device, with which a launcher of Triton kernels is called."""

import torch

ROWS, FEATURES = 4096, 32


def coupling_tensors(per_feature, index, dtype):
    """The cotangents, x and params, and the index of half of x's features or None."""
    width = 2 * FEATURES if index else FEATURES
    x = torch.empty(ROWS, width, dtype=dtype, device="meta")
    params = torch.empty(ROWS, FEATURES, per_feature, dtype=dtype, device="meta")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grads = torch.empty_like(x), torch.empty(ROWS, dtype=wide, device="meta")
    places = torch.empty(FEATURES, dtype=torch.int64, device="meta") if index else None
    return grads, (x, params), places


def directions(name, module, grads, tensors, arguments):
    yield f"forward, {name}", module._launch_forward, (*tensors, *arguments)
    yield f"backward, {name}", module._launch_backward, (*grads, *tensors, *arguments)

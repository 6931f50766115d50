"""The tensors that modules hold, also in replicas of torch.nn.DataParallel, where they are plain attributes."""

from collections.abc import Iterator
from typing import Any

import torch

from flowkern import _torch


def held(module: Any) -> Iterator[Any]:
    """(dict, key, tensor) for each place of a parameter or buffer in the module and in those below it."""
    for part in module.modules():
        owners = [part._parameters, part._buffers]
        if _torch.is_replica(part):
            owners.append(part.__dict__)
        for owner in owners:
            yield from ((owner, key, t) for key, t in owner.items() if isinstance(t, torch.Tensor))


def trainable(module):
    """The different parameters and buffers that require gradients; a replica's come from those of its module."""
    return list({id(t): t for _, _, t in held(module) if t.requires_grad}.values())

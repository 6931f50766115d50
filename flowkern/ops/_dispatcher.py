"""Ops of torch's dispatcher: {name: (schema, fake kernel)}, as each op's native.py lists them in OPS."""

from collections.abc import Callable, Mapping

import torch

Ops = Mapping[str, tuple[str, Callable]]


def define(namespace: str, ops: Ops) -> torch.library.Library:
    """The library that holds the ops in a namespace, defined, with their fake kernels; they live as long as it does."""
    library = torch.library.Library(namespace, "FRAGMENT")
    for name, (schema, fake) in ops.items():
        library.define(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    return library

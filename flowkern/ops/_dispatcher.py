"""Ops of torch's dispatcher: {name: (schema, fake kernel)}, as each op's native.py lists them in OPS."""

from collections.abc import Callable, Mapping

import torch

Ops = Mapping[str, tuple[str, Callable]]
DEFINED: dict[str, list[str]] = {}  # namespace: the schemas of its ops


def define(namespace: str, ops: Ops) -> torch.library.Library:
    """The library that holds the ops in a namespace, defined, with their fake kernels; they live as long as it does."""
    library = torch.library.Library(namespace, "FRAGMENT")
    for name, (schema, fake) in ops.items():
        library.define(name + schema)
        DEFINED.setdefault(namespace, []).append(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    return library


def as_cpp(namespace: str = "flowkern") -> str:
    """The schemas as C++, for programs that run exported models without Python: the libraries hold kernels alone."""
    lines = "\n".join(f'  m.def("{schema}");' for schema in DEFINED[namespace])
    return f"#include <torch/library.h>\n\nTORCH_LIBRARY_FRAGMENT({namespace}, m) {{\n{lines}\n}}\n"

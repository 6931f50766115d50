"""What the options of an op are written with, see tests/options.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

BOTH = (False, True)
COMMON = {"dtype": (torch.float32, torch.float64), "batch": (0, 1, 17, 33)}
DIRECTED = {**COMMON, "inverse": BOTH, "wanted": ("x", "others", "last", "none")}
BINS = (1, 2, 5, 8, 10, 33)


@dataclass(frozen=True)
class Space:
    """The values of each option of an op, and the case that a choice of them makes.

    Every space has the option dtype and, where the op has two directions, inverse, and wanted: of which
    inputs gradients are.
    """

    options: dict
    case: Callable[[dict], Any]


def text(choice):
    """For labels."""
    return ", ".join(f"{name}={value}" for name, value in choice.items())

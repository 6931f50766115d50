"""What `verify` found, as plain fields and as text."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from flowkern.report.table import Table

_WIDTH = 100


@dataclass(frozen=True)
class Check:
    """One comparison with the original.

    what: the call and what of it is compared; dtype: in which it was computed.
    original, accelerated: the largest distances from the original in float64, relative to the largest number there
        (or 1); of an inverse, the distance of f(f⁻¹(y)) from y.
    bound: the largest that `accelerated` may be.
    note: an error that was raised instead of giving numbers, or "".
    """

    what: str
    dtype: str
    original: float
    accelerated: float
    bound: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the accelerated numbers are within the bound."""
        return self.accelerated <= self.bound


@dataclass(frozen=True)
class Verification:
    """What `flowkern.verify` found; true if all agrees.

    model: name of its class. rows: of the example. layers: how many of its modules are accelerated.
    checks: a `Check` for each comparison.
    """

    model: str
    rows: int
    layers: int
    checks: tuple

    @property
    def agrees(self) -> bool:
        """Whether every check does."""
        return all(check.agrees for check in self.checks)

    def __bool__(self):
        return self.agrees

    def as_dict(self) -> dict[str, Any]:
        """All fields as dictionaries, tuples and plain values, and whether all agrees."""
        return dataclasses.asdict(self) | {"agrees": self.agrees}

    def show(self) -> None:
        """Print it: with rich if that is installed, else as plain text."""
        try:
            from rich.console import Console
        except ImportError:
            print(self)
            return
        self._table().show(Console())

    def __str__(self):
        return self._table().text(_WIDTH)

    def _table(self):
        rows = [
            (c.what, c.dtype, f"{c.original:.1e}", f"{c.accelerated:.1e}", "agrees" if c.agrees else "DISAGREES")
            for c in self.checks
        ]
        columns = ("", "dtype", "original", "accelerated", "")
        layers = f"{self.layers} modules accelerated" if self.layers else "nothing is accelerated"
        notes = (
            "Largest distances from the original in float64, relative to the largest number there (or 1); of an "
            "inverse, the distance of f(f⁻¹(y)) from y.",
            *dict.fromkeys(c.note for c in self.checks if c.note),
        )
        return Table(f"{self.model}: {self.rows} rows, {layers}", columns, rows, notes)

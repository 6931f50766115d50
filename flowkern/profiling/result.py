"""What a profile says, as plain fields and as text."""

import dataclasses
import textwrap
from dataclasses import dataclass
from typing import Any

from flowkern.report.table import Table

_WIDTH = 100

# names of works
STEP, STEP_FUSED = "training step", "training step, fused Adam"
FORWARD_BACKWARD, LOG_PROB, SAMPLING = "forward + backward", "log_prob", "sampling"


@dataclass(frozen=True)
class Work:
    """One kind of call, in seconds: medians of the plain and the accelerated flow.

    plain, accelerated: at the whole batch; plain_few, accelerated_few: at `Profile.few` rows.
    speedup: plain over accelerated at the whole batch, the median of the rounds; speedup_quartiles: its quartiles.
    """

    name: str
    plain: float
    accelerated: float
    plain_few: float
    accelerated_few: float
    speedup: float
    speedup_quartiles: tuple


@dataclass(frozen=True)
class Step:
    """What a training step with torch.optim.Adam as users write it goes to: shares, whose sum is 1.

    optimiser: Adam's step.
    fixed: forward and backward at `Profile.few` rows: Python, dispatch and work on the weights alone.
    growing: the rest, which grows with the batch.
    """

    optimiser: float
    fixed: float
    growing: float


@dataclass(frozen=True)
class Optimiser:
    """Seconds of one step of torch.optim.Adam, as users write it and with fused=True (None: not possible here)."""

    adam: float
    fused: float | None


@dataclass(frozen=True)
class LayerTime:
    """One layer, called by itself on the input that it has within log_prob, without gradients.

    plain, accelerated: seconds; plain_share, accelerated_share: of the sum over the layers.
    note: what `explain` says of it in training; reason: why it is not accelerated, or "".
    """

    name: str
    kind: str
    plain: float
    accelerated: float
    plain_share: float
    accelerated_share: float
    note: str
    reason: str


@dataclass(frozen=True)
class Profile:
    """What `flowkern.profile` measured; times in seconds, medians over `rounds` rounds.

    model: name of its class.
    rows: rows of the batch; few: the smaller number of rows that shows what does not shrink with the batch.
    device, dtype, threads, cores: of the batch, of torch, and how many cores this process may use.
    accelerated: whether `accelerate` replaced anything.
    works: a `Work` for each kind of call. steps: a `Step` of "plain" and of "accelerated".
    optimiser: an `Optimiser`. Both are empty or None if no parameter requires a gradient.
    layers: a `LayerTime` for each layer of log_prob, in order.
    notes: what was not measured, and why. advice: what would help next.
    """

    model: str
    rows: int
    few: int
    device: str
    dtype: str
    threads: int
    cores: int
    rounds: int
    accelerated: bool
    works: tuple
    steps: dict
    optimiser: Optimiser | None
    layers: tuple
    notes: tuple = ()
    advice: tuple = ()

    def as_dict(self) -> dict[str, Any]:
        """All fields as dictionaries, tuples and plain values."""
        return dataclasses.asdict(self)

    def show(self) -> None:
        """Print it: with rich if that is installed, else as plain text."""
        try:
            from rich.console import Console
        except ImportError:
            print(self)
            return
        console = Console()
        for table in self._tables():
            table.show(console)
        for line in self._advice():
            console.print(line, markup=False, highlight=False)

    def __str__(self):
        advice = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in self._advice()]
        return "\n".join([*(table.text(_WIDTH) + "\n" for table in self._tables()), *advice])

    def _advice(self):
        return ["What would help next", *(f"- {line}" for line in self.advice)]

    def _few(self):
        return f"{self.few} row{'s' * (self.few > 1)}"

    def _tables(self):
        return [table for table in (self._work_table(), self._step_table(), self._layer_table()) if table.rows]

    def _work_table(self):
        columns = ("ms", "plain", "accelerated", "speedup", f"plain, {self._few()}", f"accelerated, {self._few()}")
        rows = [
            (w.name, ms(w.plain), ms(w.accelerated), f"{digits(w.speedup)} ×", ms(w.plain_few), ms(w.accelerated_few))
            for w in self.works
        ]
        about = f"{self.rows} rows, {self.dtype}, {self.device}, {self.threads} of {self.cores} cores"
        notes = (
            f"Medians of interleaved rounds ({self.rounds}). A training step is zero_grad, forward, backward and "
            "Adam; log_prob and sampling run in evaluation mode, without gradients.",
            *self.notes,
        )
        return Table(f"{self.model}: {about}", columns, rows, notes)

    def _step_table(self):
        names = {
            "optimiser": "optimiser: torch.optim.Adam",
            "fixed": f"fixed cost of forward + backward (their time at {self._few()})",
            "growing": "what grows with the batch",
        }
        rows = [
            (text, *(f"{getattr(step, name):.0%}" for step in self.steps.values()))
            for name, text in names.items()
            if self.steps
        ]
        return Table("Shares of a training step", ("", *self.steps), rows)

    def _layer_table(self):
        rows = [
            (
                f"{layer.name} ({layer.kind})",
                *(ms(layer.plain), f"{layer.plain_share:.0%}", ms(layer.accelerated), f"{layer.accelerated_share:.0%}"),
            )
            for layer in self.layers
        ]
        columns = ("ms", "plain", "share", "accelerated", "share")
        note = (
            "Each layer is called by itself, in the direction of log_prob, without gradients. Shares are of the sum of "
            "these times; in the accelerated flow several layers may run in one call and take less."
        )
        return Table("Layers", columns, rows, (note,))


def ms(seconds):
    """Milliseconds with three digits."""
    return digits(1e3 * seconds)


def digits(value):
    """Three digits, and no exponent where it is large."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

"""Speed on a GPU: parts of the gate (`python -m tests.gpu.gate`), which hands itself over as the argument `gate`."""

import contextlib


class Gpu:
    """What the tables ask of the gate, on a GPU."""

    dry_run, device = False, "cuda"

    def on(self, backend):
        """The backends have their own names on a GPU."""
        return contextlib.nullcontext(backend)

"""Speed on a GPU: parts of the gate (`python -m tests.gpu.gate`), which hands itself over as the argument `gate`."""

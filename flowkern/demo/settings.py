"""How much work the demo does."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """Sizes of the digits flow, of its training, of the timing, and of the two-moons flow."""

    layers: int
    hidden_features: int
    bins: int
    batch: int
    steps: int
    evaluate_every: int
    rounds: int
    sample_seconds: float
    compile: bool
    moons_steps: int
    moons_batch: int

    def warm_up(self):
        """The same work, but only a few steps of it."""
        return replace(self, steps=3)


FULL = Settings(
    layers=6,
    hidden_features=128,
    bins=8,
    batch=256,
    steps=600,
    evaluate_every=25,
    rounds=11,
    sample_seconds=0.15,
    compile=True,
    moons_steps=1500,
    moons_batch=256,
)
QUICK = replace(
    FULL,
    steps=120,
    evaluate_every=20,
    rounds=5,
    sample_seconds=0.1,
    compile=False,
    moons_steps=400,
)

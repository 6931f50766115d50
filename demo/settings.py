"""How much work the demo does."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """Sizes of the digits flows, of their training, of the timing, and of the two-moons flows.

    maf_…: the autoregressive flows. cost_features: the D of the curve of cost against D, on which
    the library is timed as far as cost_peer_features. cnf_steps, matching_steps: the continuous flows of
    the two moons, by likelihood and by flow matching. memory_steps: the steps of the solves whose
    gradient's memory is measured, torchdiffeq's as far as memory_peer_steps. posterior_steps: the training of
    sbi's MAF; profile_seconds: of the profile of one of its steps.
    """

    layers: int
    hidden_features: int
    bins: int
    batch: int
    steps: int
    evaluate_every: int
    rounds: int
    sample_seconds: float
    compile: bool
    maf_layers: int
    maf_hidden: int
    maf_steps: int
    cost_features: tuple
    cost_peer_features: int
    cost_rounds: int
    moons_steps: int
    moons_batch: int
    cnf_steps: int
    matching_steps: int
    memory_steps: tuple
    memory_peer_steps: int
    posterior_steps: int
    profile_seconds: float

    def warm_up(self):
        """The same work, but only a few steps of it."""
        return replace(self, steps=3)

    def for_maf(self):
        """The training of the autoregressive flows, looked at from outside when it is done."""
        return replace(self, steps=self.maf_steps, evaluate_every=self.maf_steps)


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
    maf_layers=5,
    maf_hidden=128,
    maf_steps=400,
    cost_features=(8, 16, 32, 64, 128, 256, 512, 1024),
    cost_peer_features=256,
    cost_rounds=5,
    moons_steps=1500,
    moons_batch=256,
    cnf_steps=1000,
    matching_steps=4000,
    memory_steps=(16, 32, 64, 128, 256, 512, 1024),
    memory_peer_steps=256,
    posterior_steps=2000,
    profile_seconds=5.0,
)
QUICK = replace(
    FULL,
    steps=50,
    evaluate_every=25,
    rounds=3,
    sample_seconds=0.1,
    compile=False,
    maf_steps=60,
    cost_features=(8, 16, 32, 64, 128, 256),
    cost_peer_features=64,
    cost_rounds=2,
    moons_steps=400,
    cnf_steps=250,
    matching_steps=2000,
    memory_steps=(16, 32, 64, 256),
    memory_peer_steps=32,
    posterior_steps=300,
    profile_seconds=1.5,
)

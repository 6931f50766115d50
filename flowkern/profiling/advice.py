"""What would help next, in plain words, from the figures of a profile."""

from flowkern.profiling.result import STEP, ms

_OPTIMISER_SHARE = 0.05
_FIXED_SHARE = 0.5
_LAYER_SHARE = 0.05
_SLOWER = 0.95
_ENOUGH_ROUNDS = 5


def advice(profile):
    """A tuple of sentences on a `Profile`, never empty."""
    parts = (_rounds, _optimiser, _batch, _layers, _unchanged, _slower, _threads)
    said = tuple(sentence for part in parts for sentence in part(profile))
    return said or ("Nothing stands out: most of the time is work on the batch, in layers that are accelerated.",)


def _rounds(profile):
    if profile.rounds < _ENOUGH_ROUNDS:
        fitted = "one round" if profile.rounds == 1 else f"{profile.rounds} rounds"
        yield f"Time: only {fitted} fitted in, so the figures are rough; give profile more seconds."


def _optimiser(profile):
    if not profile.steps or not profile.optimiser.fused:
        return
    share, (adam, fused) = profile.steps["accelerated"].optimiser, (profile.optimiser.adam, profile.optimiser.fused)
    if share > _OPTIMISER_SHARE and fused < adam:
        yield (
            f"Optimiser: torch.optim.Adam takes {share:.0%} of the accelerated training step, {ms(adam)} ms. With "
            f"torch.optim.Adam(…, fused=True) it takes {ms(fused)} ms."
        )


def _batch(profile):
    """Works that take about as long at few rows."""
    shares = {work.name: work.accelerated_few / work.accelerated for work in profile.works}
    named = [name for name in shares if not name.startswith(STEP) and shares[name] > _FIXED_SHARE]
    if named and profile.rows > profile.few:
        times = ", ".join(f"{name} {min(1, shares[name]):.0%}" for name in named)
        few = "one row" if profile.few == 1 else f"{profile.few} rows"
        yield (
            f"Batch: a call with {few} takes most of the time of one with {profile.rows} ({times}). That is Python, "
            "dispatch and work on the weights alone, which do not grow with the batch: larger batches cost little."
        )


def _layers(profile):
    """Layers that are not accelerated and whose share is worth it, those with the same reason together."""
    groups = {}
    for layer in profile.layers:
        if layer.reason:
            groups.setdefault((layer.kind, layer.reason), []).append(layer)
    for (kind, reason), layers in groups.items():
        share = sum(layer.accelerated_share for layer in layers)
        if share > _LAYER_SHARE:
            names = ", ".join(layer.name for layer in layers)
            yield (
                f"Layers: {kind} is not accelerated ({reason}) and takes {share:.0%} of the layers' forward time in "
                f"the accelerated flow: {names}."
            )


def _unchanged(profile):
    if not profile.accelerated and not any(layer.reason for layer in profile.layers):
        yield (
            "Acceleration: flowkern.accelerate replaces nothing in this flow, so both columns are the same code: its "
            "layers are flowkern's own, or none that flowkern knows."
        )


def _slower(profile):
    """Where even the better rounds were slower."""
    if not profile.accelerated or profile.rounds < _ENOUGH_ROUNDS:
        return
    for work in profile.works:
        if work.speedup_quartiles[1] < _SLOWER:
            yield (
                f"Slower: the accelerated flow takes {1 / work.speedup:.2f} times as long for {work.name} here; "
                "flowkern.restore(model) gives the plain one back."
            )


def _threads(profile):
    if profile.device != "cpu" or profile.threads == profile.cores:
        return
    if profile.threads > profile.cores or _grows(profile):
        uses = f"torch uses {profile.threads} thread{'s' * (profile.threads > 1)} on {profile.cores} cores"
        yield f"Threads: {uses}; try torch.set_num_threads({profile.cores})."


def _grows(profile):
    return any(work.accelerated_few < _FIXED_SHARE * work.accelerated for work in profile.works)

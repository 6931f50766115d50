"""Pictures of posterior training: curves against seconds, and what a step's time goes to."""

from demo.charts import COLORS, INK, MUTED, STYLE, plt, save

_LINES = {
    "plain": (COLORS["eager"], "-"),
    "accelerated": (COLORS["flowkern"], "-"),
    "accelerated, fused Adam": (COLORS["flowkern"], "--"),
}
_PARTS = {
    "optimiser": ("Adam", COLORS["torch.compile"]),
    "fixed": ("forward and backward, fixed", COLORS["flowkern"]),
    "growing": ("forward and backward, growing with the batch", "#8cc7cf"),
}


def chart(runs, best, profile, path):
    """Held-out nats of each run against its seconds; beside it the parts of a training step."""
    with plt.rc_context(STYLE):
        figure, (curves, step) = plt.subplots(1, 2, figsize=(10.4, 3.6))
        for run in runs:
            color, line = _LINES[run.name]
            curves.plot(run.seconds, run.nats, line, color=color, label=f"{run.name}, {run.seconds[-1]:.1f} s")
        curves.axhline(best, color=INK, linewidth=0.8, linestyle=":", label="the exact posterior")
        curves.set(title="The same training, in less time", xlabel="seconds of training", ylabel="held-out nats")
        curves.legend()
        curves.grid(axis="y")
        _steps(step, profile)
        return save(figure, path)


def _steps(ax, profile):
    whole = next(work for work in profile["works"] if work["name"] == "training step")
    ways = [way for way in ("accelerated", "plain") if way in profile["steps"]]
    left = [0.0] * len(ways)
    for part, (label, color) in _PARTS.items():
        widths = [1e3 * whole[way] * profile["steps"][way][part] for way in ways]
        ax.barh(ways, widths, left=left, color=color, label=label, height=0.5)
        left = [a + b for a, b in zip(left, widths)]
    for i, total in enumerate(left):
        ax.annotate(f"{total:.2f} ms", (total, i), (4, 0), textcoords="offset points", va="center", color=MUTED)
    ax.set(title="What one step takes", xlabel="milliseconds")
    ax.margins(x=0.2, y=0.35)
    ax.legend(loc="upper right", fontsize=8)

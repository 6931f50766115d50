"""One look for all charts, drawn without a display."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)

INK, MUTED, GRID = "#1f2933", "#66727f", "#e3e8ee"
COLORS = {
    "eager": "#a3adb8",
    "torchdiffeq": "#a3adb8",
    "torch.compile": "#e0a458",
    "flowkern": "#0f7b8a",
}

STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "legend.frameon": False,
    "savefig.dpi": 180,
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
}


def save(figure, path):
    """Write `figure` as a PNG and forget it."""
    figure.savefig(path)
    plt.close(figure)
    return path


def throughput(rows, path):
    """One panel of bars for each piece of work: items per second, with quartiles.

    Args:
        rows: (title, items per call, name → Timing), one for each panel.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(rows), figsize=(3.5 * len(rows), 3.2), squeeze=False)
        for ax, (title, items, timings) in zip(axes[0], rows):
            _bars(ax, title, items, timings)
        axes[0][0].set_ylabel("samples per second")
        return save(figure, path)


def _bars(ax, title, items, timings):
    for i, (name, timing) in enumerate(timings.items()):
        rate = items / timing.median
        lower, upper = timing.quartiles
        ax.bar(i, rate, width=0.62, color=COLORS[name])
        ax.vlines(i, items / upper, items / lower, color=INK, linewidth=1.4)
        label, top = _label(name, rate, timings), items / lower
        ax.annotate(label, (i, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xticks(range(len(timings)), timings)
    ax.tick_params(length=0)
    ax.margins(y=0.24)
    ax.grid(axis="y")
    ax.set_title(title)
    ax.yaxis.set_major_formatter("{x:,.0f}")


def _label(name, rate, timings):
    peer = next((peer for peer in ("eager", "torchdiffeq") if peer in timings), name)
    if name == peer:
        return f"{rate:,.0f}"
    return f"{rate:,.0f}\n{timings[name].speedup_over(timings[peer]):.1f} × {peer}"

"""What an inverse of one layer costs as its number of features D grows: the timings and their chart."""

from dataclasses import dataclass

from demo.charts import COLORS, STYLE, plt, save

WAYS = ("eager forward", "eager inverse", "flowkern forward", "flowkern inverse")


@dataclass
class Cost:
    """`Timing`s at one D, by those of `WAYS` that were timed."""

    features: int
    timings: dict

    def ratio(self, name):
        """Median over the rounds of the time of the inverse over that of the forward, or None."""
        forward, inverse = (self.timings.get(f"{name} {way}") for way in ("forward", "inverse"))
        return forward and inverse and forward.speedup_over(inverse)


def chart(costs, path):
    """The time of an inverse against D, and how many forward passes it takes."""
    with plt.rc_context(STYLE):
        figure, (times, ratios) = plt.subplots(1, 2, figsize=(10.4, 3.9))
        for name, label in (("eager", "nflows"), ("flowkern", "accelerated")):
            for way, style in (("inverse", "-"), ("forward", ":")):
                timed = [c for c in costs if f"{name} {way}" in c.timings]
                y = [1e3 * c.timings[f"{name} {way}"].median for c in timed]
                _line(times, timed, y, name, f"{label}, {way}", style)
            timed = [c for c in costs if c.ratio(name)]
            _line(ratios, timed, [c.ratio(name) for c in timed], name, label, "-")
        times.set(title="Time of one call, ms", xlabel="features D")
        ratios.set(title="Inverse / forward", xlabel="features D")
        for ax in (times, ratios):
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.xaxis.set_major_formatter("{x:.0f}")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.grid()
            ax.legend(loc="upper left", fontsize=9)
        return save(figure, path)


def _line(ax, costs, y, name, label, style):
    ax.plot([c.features for c in costs], y, style, marker="o", color=COLORS[name], label=label)

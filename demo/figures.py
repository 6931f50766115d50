"""The demo's pictures: digits, training curves, two moons, and the paths of continuous flows."""

import torch
from matplotlib.animation import FuncAnimation, PillowWriter

from demo import charts, digits, moons
from demo.charts import COLORS, INK, MUTED, STYLE, plt, save

ROWS = 8
FRAMES = 32
_HELD = 8  # of the frames, with the points at their ends
_WIDE = (-3.2, 3.2, -2.1, 2.1)
_ENDS = COLORS["torch.compile"]


def digit_grids(data, generated, path):
    """Held-out digits beside generated ones, one column for each class.

    Args:
        generated: grey levels (10, ROWS, 64), classes first.
    """
    classes = data.held_out_classes.argmax(-1)
    real = torch.stack([data.held_out[classes == c][:ROWS] for c in range(digits.CLASSES)])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.3), gridspec_kw={"wspace": 0.06})
        for ax, title, levels in zip(axes, ("Real (held out)", "Generated"), (real, generated)):
            ax.imshow(_mosaic(levels).numpy(), cmap="gray_r", interpolation="nearest", vmin=0, vmax=16)
            ax.set_title(title)
            ax.set_axis_off()
        return save(figure, path)


def _mosaic(levels, gap=2):
    """One picture of (columns, rows, 64) digits with a gap around each."""
    columns, rows, _ = levels.shape
    tiles = torch.nn.functional.pad(levels.unflatten(-1, (digits.SIDE,) * 2), (0, gap, 0, gap))
    side = digits.SIDE + gap
    return tiles.permute(1, 2, 0, 3).reshape(rows * side, columns * side)[:-gap, :-gap]


def training_curves(plain, accelerated, path):
    """Bits per dimension of both runs against step and against wall time."""
    with plt.rc_context(STYLE):
        figure, (by_step, by_time) = plt.subplots(1, 2, figsize=(10.4, 3.9), sharey=True)
        for ax, against in ((by_step, _steps), (by_time, _seconds)):
            _draw(ax, plain, against, "eager", "plain", linewidth=4)
            _draw(ax, accelerated, against, "flowkern", "accelerated", linewidth=1.5)
            ax.grid(axis="y")
        by_step.set(title="The same curve, step by step", xlabel="step", ylabel="bits per dimension")
        by_time.set(title="… in less time", xlabel="seconds of training")
        by_step.set_ylim(*_limits(plain))
        by_step.legend(loc="upper right")
        for curve, name in ((plain, "eager"), (accelerated, "flowkern")):
            _mark_end(by_time, curve, COLORS[name])
        return save(figure, path)


def _steps(curve):
    return range(1, len(curve.bits) + 1)


def _seconds(curve):
    return curve.seconds


def _draw(ax, curve, against, name, label, linewidth):
    x = against(curve)
    color = COLORS[name]
    ax.plot(x, curve.bits, color=color, linewidth=linewidth * 0.4, alpha=0.45)
    held_out = [x[step - 1] for step in curve.held_out_steps]
    ax.plot(held_out, curve.held_out_bits, color=color, linewidth=linewidth, label=label + ", held-out")


def _limits(curve):
    """Room for all held-out values; the steep beginning is cut off."""
    return min(curve.bits + curve.held_out_bits) - 0.05, max(curve.held_out_bits) + 0.1


def _mark_end(ax, curve, color):
    end, bits = curve.seconds[-1], curve.held_out_bits[-1]
    ax.plot([end], [bits], "o", color=color)
    ax.annotate(
        f"{end:.{0 if end >= 10 else 1}f} s",
        (end, bits),
        (0, 9),
        textcoords="offset points",
        ha="center",
        color=INK,
    )


def throughput(works, path):
    """Digits per second of every kind of work and every way of doing it."""
    return charts.throughput([(work.title, work.items, work.timings) for work in works], path)


def autoregressive(works, path):
    """Samples per second of the autoregressive flows."""
    return charts.throughput([(work.title, work.items, work.timings) for work in works], path)


def two_moons(flow, path):
    """Data, learnt density and samples side by side, on the same axes."""
    extent = (-2.1, 2.1, -1.35, 1.35)
    torch.manual_seed(5)
    with torch.no_grad():
        samples = flow().sample((2000,))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.4, 2.75))
        _scatter(axes[0], "Data", moons.points(2000, seed=1), MUTED, extent)
        density = moons.density(flow, extent).numpy()
        axes[1].imshow(density, extent=extent, origin="lower", cmap="magma", interpolation="bilinear")
        axes[1].set(title="Density", xticks=[], yticks=[])
        _scatter(axes[2], "Samples", samples, COLORS["flowkern"], extent)
        return save(figure, path)


def continuous(flows, results, folder, on_frame):
    """The pictures of the continuous flows, by name: densities and paths, animation, speed, accuracy."""
    works = [(work.title, work.items, work.timings) for work in results.ode_works]
    return {
        "continuous": _densities_and_paths(flows, folder / "continuous.png"),
        "animation": _animation(flows, folder / "continuous.gif", on_frame),
        "torchdiffeq": charts.throughput(works, folder / "torchdiffeq.png"),
        "solvers": _accuracy(results.accuracies, folder / "solvers.png"),
        "memory": _memory(results.memories, folder / "memory.png"),
    }


def _densities_and_paths(flows, path):
    extent = (-2.1, 2.1, -1.35, 1.35)
    torch.manual_seed(5)
    noise, t = torch.randn(120, 2), torch.linspace(0, 1, 33).tolist()
    with plt.rc_context(STYLE), torch.no_grad():
        figure, axes = plt.subplots(2, 2, figsize=(10.4, 7.2))
        for row, title, flow in zip(axes, ("Likelihood", "Flow matching"), flows):
            density = moons.density(flow, extent, pixels=150).numpy()
            row[0].imshow(density, extent=extent, origin="lower", cmap="magma", interpolation="bilinear")
            row[0].set(title=f"{title}: density", xticks=[], yticks=[])
            paths = flow.trajectory(noise, t)
            row[1].plot(*paths.unbind(-1), color=COLORS["flowkern"], linewidth=0.6, alpha=0.5)
            _scatter(row[1], "", noise, MUTED, _WIDE, size=10)
            _scatter(row[1], f"{title}: paths", paths[-1], _ENDS, _WIDE, size=20, alpha=0.9)
        return save(figure, path)


def _animation(flows, path, on_frame):
    """Points on their way from noise to data in both flows, and a while at their ends."""
    torch.manual_seed(6)
    noise, t = torch.randn(800, 2), torch.linspace(0, 1, FRAMES - _HELD).tolist()
    with plt.rc_context(STYLE), torch.no_grad():
        figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
        ways = [flow.trajectory(noise, t) for flow in flows]
        for ax, title in zip(axes, ("Likelihood", "Flow matching")):
            _scatter(ax, title, noise, COLORS["flowkern"], _WIDE)
        label = axes[0].annotate("", (0.03, 0.05), xycoords="axes fraction")

        def draw(frame):
            at = min(frame, len(t) - 1)
            label.set_text(f"t = {t[at]:.2f}")
            for ax, way in zip(axes, ways):
                ax.collections[0].set_offsets(way[at].numpy())

        film = FuncAnimation(figure, draw, range(FRAMES), init_func=lambda: None)
        film.save(path, PillowWriter(fps=12), dpi=90, progress_callback=lambda *_: on_frame())
        plt.close(figure)
    return path


def _accuracy(accuracies, path):
    """The errors of state and log-det against evaluations of the field."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.9), sharey=True)
        for ax, title in zip(axes, ("state", "logabsdet")):
            for i, found in enumerate(accuracies):
                style = "--" if found.method in ("heun2", "rk4_classic") else "-"
                ax.plot(
                    found.evaluations, getattr(found, title), style, marker="o", markersize=4,
                    color=plt.get_cmap("viridis")(0.9 * i / (len(accuracies) - 1)), label=found.method,
                )  # fmt: skip
            ax.set(xscale="log", yscale="log", xlabel="evaluations of the field")
            ax.grid()
        axes[0].set(title="Error of the state", ylabel="largest error")
        axes[1].set(title="Error of the log-det")
        axes[0].legend(loc="lower left", fontsize=9)
        return save(figure, path)


def _memory(memories, path):
    """The peak of a gradient's memory against the number of steps."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.4, 3.9))
        styles = {"torchdiffeq": "-", "discrete": "-", "checkpoints": "--", "adjoint": ":"}
        for way, style in styles.items():
            known = [(m.steps, m.peaks[way] / 2**20) for m in memories if way in m.peaks]
            peer = way == "torchdiffeq"
            ax.plot(
                *zip(*known), style, marker="o", markersize=4, label=way if peer else f"flowkern, {way}",
                color=COLORS["torchdiffeq" if peer else "flowkern"],
            )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set(title="Memory of one forward and backward, MiB", xlabel="steps")
        ax.grid()
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        return save(figure, path)


def _scatter(ax, title, points, color, extent, size=3, alpha=0.5):
    ax.scatter(*points.T.numpy(), s=size, color=color, alpha=alpha, linewidths=0, zorder=2)
    ax.set(title=title, xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="equal")
    for spine in ax.spines.values():
        spine.set_visible(True)

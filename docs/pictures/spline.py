"""Draws docs/pictures/rational_quadratic_spline.svg with the op itself: python docs/pictures/spline.py"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from flowkern.ops import rational_quadratic_spline
from flowkern.ops._rational_quadratic_spline.reference import _constrain, _knots

BOUND, BINS = 3.0, 4


def main():
    """One spline with its knots: the map on the left, its slope on the right."""
    torch.manual_seed(3)
    params = 1.2 * torch.randn(1, 1, 3 * BINS - 1, dtype=torch.float64)
    x = torch.linspace(-4.2, 4.2, 2001, dtype=torch.float64).unsqueeze(-1)
    y, logabsdet = rational_quadratic_spline(x, params, bound=BOUND)
    widths, heights, slopes = _constrain(params, 0, 1e-3, 1e-3, 1e-3, 0.0, 1.0)
    knots_x = _knots(widths, -BOUND, BOUND).flatten()
    knots_y = _knots(heights, -BOUND, BOUND).flatten()
    plt.rcParams["svg.hashsalt"] = "flowkern"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    left.plot(x, y, color="#1f5fa8")
    left.plot(knots_x, knots_y, "o", color="#c0392b", markersize=5)
    for x_k, y_k, slope in zip(knots_x, knots_y, slopes.flatten()):
        step = 0.35 / (1 + slope**2) ** 0.5
        left.plot([x_k - step, x_k + step], [y_k - slope * step, y_k + slope * step], color="#c0392b", lw=1)
    left.set(xlabel="x", ylabel="y", title="knots $(x_k, y_k)$ and slopes $d_k$", aspect="equal")
    right.plot(x, logabsdet.exp(), color="#1f5fa8")
    right.plot(knots_x, slopes.flatten(), "o", color="#c0392b", markersize=5)
    right.set(xlabel="x", ylabel="dy/dx", title="its slope: continuous, positive, 1 outside", ylim=(0, None))
    for axes in (left, right):
        axes.axvspan(-BOUND, BOUND, color="#1f5fa8", alpha=0.06)
    figure.savefig(Path(__file__).with_name("rational_quadratic_spline.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()

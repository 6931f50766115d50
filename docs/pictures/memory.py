"""Draws docs/pictures/memory.svg from memory.csv: python docs/pictures/memory.py; with `measure`, makes that anew.

The peak of torch's allocations in a forward and backward pass of nflows' spline flow, plain and accelerated.
"""

import csv
import sys
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
LAYERS, SAMPLES, FEATURES, HIDDEN = (1, 2, 4, 8, 16, 32), 4096, 10, 50


def flow(layers):
    """nflows' spline flow of `layers` coupling layers, each with a linear layer behind it."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, LULinear, PiecewiseRationalQuadraticCouplingTransform

    net = partial(ResidualNet, hidden_features=HIDDEN, num_blocks=2)
    masks = [[(i + f) % 2 for f in range(FEATURES)] for i in range(layers)]
    spline = partial(PiecewiseRationalQuadraticCouplingTransform, transform_net_create_fn=net, tails="linear")
    every = [
        transform for mask in masks for transform in (spline(mask, num_bins=10, tail_bound=3.0), LULinear(FEATURES))
    ]
    return Flow(CompositeTransform(every), StandardNormal([FEATURES]))


def peak(model):
    """Bytes at the peak of a forward and a backward."""
    import torch

    from flowkern.report.memory import peak_memory

    x = torch.randn(SAMPLES, FEATURES)

    def step():
        model.zero_grad(set_to_none=True)
        model.log_prob(x).mean().backward()

    step()
    return peak_memory(step)


def measure():
    """Writes memory.csv."""
    import flowkern

    rows = []
    for layers in LAYERS:
        model = flow(layers)
        rows.append((layers, peak(model), peak(flowkern.accelerate(model))))
    with (FOLDER / "memory.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("layers", "nflows bytes", "accelerated bytes"), *rows])


def main():
    """Both peaks against the number of layers."""
    with (FOLDER / "memory.csv").open() as file:
        _, *rows = csv.reader(file)
    layers, plain, fast = (list(map(int, column)) for column in zip(*rows))
    plt.rcParams["svg.hashsalt"] = "flowkern"
    figure, axes = plt.subplots(figsize=(6.5, 3.6), constrained_layout=True)
    axes.loglog(layers, [b / 2**20 for b in plain], "o-", color="#888888", label="nflows")
    axes.loglog(layers, [b / 2**20 for b in fast], "o-", color="#1f5fa8", label="accelerated")
    axes.set(xlabel="layers", ylabel="peak memory, MiB", title=f"forward and backward, N = {SAMPLES}, D = {FEATURES}")
    axes.set_xticks(layers, map(str, layers), minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(FOLDER / "memory.svg", metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    main()

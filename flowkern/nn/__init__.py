"""Conditioners: networks from features (and the context) to the parameters of a transform.

A coupling layer's conditioner is any callable `(x) -> params` or `(x, context) -> params`. Its
attribute `broadcasts` tells the layer that it takes x and context of different batch shapes. An
autoregressive layer's conditioner is a module with `layers(context)` and `degrees`, as `MADE` has.
Those here start with a zero last layer, so that their output is zero and the transform they drive
is the identity (for the maps in which zero means scale or slope one). `VectorField`, the network of
a continuous flow, starts as zero likewise.
"""

from flowkern.nn.made import MADE
from flowkern.nn.mlp import MLP, ResidualNet
from flowkern.nn.vector_field import VectorField

__all__ = ["MADE", "MLP", "ResidualNet", "VectorField"]

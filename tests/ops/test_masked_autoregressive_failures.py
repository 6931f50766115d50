"""The masked autoregressive transform refuses what it cannot do, and says which argument it is."""

import pytest
import torch

from flowkern.ops import (
    Activation,
    AffineElement,
    ContextTerm,
    Degrees,
    MaskedLayer,
    SplineElement,
    masked_autoregressive,
)

W, V, B = torch.zeros(4, 3), torch.zeros(6, 4), torch.zeros(4)
LAYERS = [MaskedLayer(W, B, "relu"), MaskedLayer(V)]
DEGREES = Degrees([1, 2, 3], [[1, 2, 1, 2]])
X = torch.zeros(5, 3)
LAST, AFFINE = LAYERS[1], AffineElement()


def _of_term(term):
    return [MaskedLayer(W, context=term), LAST]


# (how the message begins, x, layers, degrees, element)
BAD = [
    ("x: expected a tensor", [1.0], LAYERS, DEGREES, AFFINE),
    ("x: expected a floating", X.long(), LAYERS, DEGREES, AFFINE),
    ("x: expected shape", torch.zeros(()), LAYERS, DEGREES, AFFINE),
    ("degrees: of 3 features", X[:, :2], LAYERS, DEGREES, AFFINE),
    ("degrees: expected a Degrees", X, LAYERS, [1, 2, 3], AffineElement()),
    ("layers: expected 2", X, LAYERS[:1], DEGREES, AFFINE),
    (r"layers\[0\]: expected a MaskedLayer", X, [W, V], DEGREES, AFFINE),
    (r"layers\[0\].weight: expected shape", X, [MaskedLayer(W.T), LAST], DEGREES, AFFINE),
    (r"layers\[0\].weight: expected a float", X, [MaskedLayer(W.long()), LAST], DEGREES, AFFINE),
    (r"layers\[0\].bias: expected shape", X, [MaskedLayer(W, B[:3]), LAST], DEGREES, AFFINE),
    (r"layers\[0\].gain: expected shape", X, [MaskedLayer(W, gain=torch.zeros(5, 4)), LAST], DEGREES, AFFINE),
    (r"layers\[0\].context: expected a ContextTerm", X, _of_term(X), DEGREES, AFFINE),
    (r"layers\[0\].context.weight: expected shape", X, _of_term(ContextTerm(X, V)), DEGREES, AFFINE),
    (r"layers\[0\].context.bias: expected shape", X, _of_term(ContextTerm(X, W, B[1:])), DEGREES, AFFINE),
    (r"layers\[0\].context.context: expected a float", X, _of_term(ContextTerm(X.long(), W)), DEGREES, AFFINE),
    (r"layers: the batch shapes", X, _of_term(ContextTerm(X[1:], W)), DEGREES, AFFINE),
    (r"layers\[0\].skip: expected an earlier", X, [MaskedLayer(W, skip=0), LAST], DEGREES, AFFINE),
    (r"layers\[1\]: the last", X, [LAYERS[0], MaskedLayer(V, activation="tanh")], DEGREES, AFFINE),
    ("layers: the batch shapes", X, [MaskedLayer(W, torch.zeros(7, 4)), LAST], DEGREES, AFFINE),
    ("layers: the last must have 1", X, LAYERS, DEGREES, AffineElement("additive")),
    ("layers: tails", X, LAYERS, DEGREES, SplineElement(tails="circular")),
    ("activation: expected one of", X, [MaskedLayer(W, B, "swish"), LAST], DEGREES, AFFINE),
    ("element: expected", X, LAYERS, DEGREES, "affine"),
    ("scale_map: expected one of", X, LAYERS, DEGREES, AffineElement("cube")),
    ("bound: expected", X, LAYERS, DEGREES, SplineElement(bound=-1.0)),
]  # fmt: skip


@pytest.mark.parametrize("message, x, layers, degrees, element", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments(message, x, layers, degrees, element):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        masked_autoregressive(x, layers, degrees, element)


def test_bad_skip():
    """A unit may not receive from one that sees more than itself."""
    layers = [MaskedLayer(W, B), MaskedLayer(torch.zeros(4, 4), skip=0), MaskedLayer(V)]
    lower = Degrees([1, 2, 3], [[1, 2, 1, 2], [1, 1, 1, 2]])
    with pytest.raises(ValueError, match=r"^layers\[1\].skip: a unit of layer 0"):
        masked_autoregressive(X, layers, lower, AffineElement())


@pytest.mark.parametrize(
    "message, make",
    [
        ("features: expected a vector", lambda: Degrees([[1, 2]])),
        ("features: expected a vector", lambda: Degrees(torch.zeros(3))),
        ("features: expected at least one", lambda: Degrees(torch.zeros(0, dtype=torch.long))),
        (r"hidden\[1\]: expected a vector", lambda: Degrees([1], [[1], 2])),
        ("activation: expected one of relu, ", lambda: Activation("swish")),
        ("activation: expected one of relu, ", lambda: Activation.of(["relu"])),
        ("activation: expected a finite slope", lambda: Activation("elu", float("nan"))),
        ("activation: tanh has no slope, got 0.5", lambda: Activation("tanh", 0.5)),
        ("activation: relu has no slope, got 0.5", lambda: Activation("relu", 0.5)),
    ],
)
def test_bad_degrees_and_activations(message, make):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()

"""Every pair of options of every op, on the kernels that run on CPU tensors."""

import inspect
import itertools

import pytest

from flowkern import ops
from flowkern.ops import AffineElement, ContextTerm, MaskedLayer, SplineElement
from tests import options
from tests.conftest import RUNNABLE
from tests.options import SPACES

# What has no option of its own: data, and what is fixed by another option.
_DATA = {
    "affine_coupling": {"x", "params", "index", "mask"},
    "rational_quadratic_spline": {"x", "params", "index", "mask"},
    "masked_autoregressive": {
        "x",
        "layers",
        "degrees",
        "weight",
        "offset",
        "gain",
        "context",
        "tails",
        "bound",
        "knot_map",
        "scale_map",
    },
    "neural_ode": {"y", "layers", "t", "checkpoint", "on_failure"},
    "probability_path": {"x0", "x1", "t", "noise", "seed"},
    "runge_kutta_stage": {"y", "k", "weights"},
}


@pytest.mark.parametrize("op", SPACES)
def test_every_argument_is_an_option(op):
    """An option that an op gets is one of these from the first day."""
    names = {*inspect.signature(getattr(ops, op)).parameters}
    if op == "masked_autoregressive":
        names |= {*MaskedLayer._fields, *ContextTerm._fields, *AffineElement._fields, *SplineElement._fields}
    assert names - _DATA[op] <= SPACES[op].options.keys()


@pytest.mark.parametrize("op", SPACES)
def test_pairs_are_all_of_them(op):
    space = SPACES[op]
    chosen = [*options.pairs(space)]
    for a, b in ((a, b) for a in space.options for b in space.options if a < b):
        met = {(choice[a], choice[b]) for choice in chosen}
        assert len(met) == len(space.options[a]) * len(space.options[b])


def check(op, backend, choices):
    for choice in choices:
        try:
            options.call(SPACES[op], choice).check(backend)
        except Exception as error:
            raise AssertionError(options.text(choice)) from error


@pytest.mark.parametrize("kernels", [name for name in RUNNABLE if name != "reference"])
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("op", SPACES)
def test_every_pair_of_options_agrees_with_the_reference(kernels, op, part):
    check(op, kernels, [*options.pairs(SPACES[op])][part::4])


@pytest.mark.parametrize("op", SPACES)
def test_many_pairs_agree_on_triton(interpreted, op):
    """The interpreter is slow: the first choices, which have most pairs, of few samples."""
    check(op, "triton", itertools.islice(options.pairs(options.smaller(SPACES[op], 1)), 6))

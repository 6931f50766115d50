"""Every pair of options of every op, on the kernels that run on CPU tensors."""

import itertools

import pytest

from tests import cases, options
from tests.cases.space import text
from tests.conftest import RUNNABLE
from tests.options import SPACES


@pytest.mark.parametrize("op", SPACES)
def test_every_argument_is_an_option(op):
    """An option that an op gets is one of these from the first day."""
    module = cases.modules("options")[op]
    assert module.ARGUMENTS - module.DATA <= module.SPACE.options.keys()


def test_every_op_has_options():
    assert {*SPACES} == {*cases.OPS}


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
            raise AssertionError(text(choice)) from error


@pytest.mark.parametrize("kernels", [name for name in RUNNABLE if name != "reference"])
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("op", SPACES)
def test_every_pair_of_options_agrees_with_the_reference(kernels, op, part):
    check(op, kernels, [*options.pairs(SPACES[op])][part::4])


@pytest.mark.parametrize("op", [op for op in SPACES if "triton" in cases.kernels(op)])
def test_many_pairs_agree_on_triton(interpreted, op):
    """The interpreter is slow: the first choices, which have most pairs, of few samples."""
    check(op, "triton", itertools.islice(options.pairs(options.smaller(SPACES[op], 1)), 6))

"""The tables of kinds are the same in Python and in C++."""

import math
import re
from pathlib import Path

import pytest
import torch

from flowkern.ops import Activation
from flowkern.ops._activation import CALLS, KINDS, NAMES, of_call
from flowkern.ops._affine_coupling.scale_map import CODES, SCALE_MAPS
from flowkern.ops._masked_autoregressive.element import ELEMENTS
from flowkern.ops._neural_ode import METHODS, MOST_STAGES
from flowkern.ops._probability_path.kinds import PATHS
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS, KnotMap
from flowkern.ops._tableau import TABLEAUX

_HEADER = Path(__file__).parent.parent / "csrc" / "common" / "kinds.h"
TABLES = {
    "ACTIVATIONS": tuple(KINDS),
    "ELEMENTS": ELEMENTS,
    "KNOT_MAPS": tuple(KNOT_MAPS),
    "PATHS": tuple(PATHS),
    "SCALE_MAPS": SCALE_MAPS,
    "TAILS": tuple(TAILS),
}


def in_cpp(table):
    """The names in one of the lists of kinds.h, in order."""
    return tuple(re.findall(r"X\(\w+, (\w+)", _text(table)))


def _text(table):
    return re.search(rf"#define FLOWKERN_{table}\(X\)((?:.*\\\n)*.*)", _HEADER.read_text())[1]


@pytest.mark.parametrize("table", TABLES)
def test_python_and_cpp_have_the_same_kinds(table):
    assert in_cpp(table) == TABLES[table]


def test_tails_have_the_same_parameters_in_cpp():
    counts = re.findall(r"X\(k\w+, (\w+), (-?\d)\)", _text("TAILS"))
    assert {name: int(more) for name, more in counts} == {name: tails.more for name, tails in TAILS.items()}


def test_codes_are_places_in_the_tables():
    assert [Activation(kind).code for kind in KINDS] == [*range(len(KINDS))] and [*CODES] == [*SCALE_MAPS]
    assert [tails.code for tails in TAILS.values()] == [*range(len(TAILS))]
    assert [KnotMap.of(name).numbers()[0] for name in KNOT_MAPS] == [*range(len(KNOT_MAPS))]


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_is_its_module(name):
    """So that value, derivative and torch's module are one activation, with torch's slope."""
    activation = Activation.of(name)
    z = torch.linspace(-4, 4, 16, dtype=torch.float64, requires_grad=True)
    value = activation(z)
    torch.testing.assert_close(value, activation.module()(z))
    (grad,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(KINDS[activation.kind].derivative(z, activation.slope), grad)


def test_an_activation_has_the_slope_of_torch():
    assert Activation.of("leaky_relu") == Activation("leaky_relu") == Activation("leaky_relu", 0.01)
    assert Activation("elu").slope == 1.0 and Activation("relu") == Activation("leaky_relu", 0.0)
    assert Activation("tanh").slope is None and math.isfinite(Activation("tanh").numbers()[1])


def test_a_slope_is_a_number():
    with pytest.raises(TypeError, match="^activation: expected a number as slope, got 'a'"):
        Activation("elu", "a")


def test_kernels_have_every_method_that_they_have_room_for():
    header = (_HEADER.parents[1] / "neural_ode" / "cuda.h").read_text()
    most = int(re.search(r"kMostOdeStages = (\d+)", header)[1])
    assert most == MOST_STAGES
    assert set(TABLEAUX) - set(METHODS) == {"dopri8"} == {n for n, m in TABLEAUX.items() if len(m.fixed()[1]) > most}
    assert {"heun3", "bosh3", "tsit5"} <= set(METHODS)


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_known_by_its_name_and_arguments(name):
    function, z = getattr(torch.nn.functional, name, None) or getattr(torch, name), torch.linspace(-3, 3, 7)
    torch.testing.assert_close(of_call(name)(z), function(z))


def test_a_function_with_settings_that_no_kernel_has_is_not_known():
    assert of_call("gelu", approximate="tanh") is None and of_call("softplus", 2.0) is None
    assert of_call("leaky_relu", 0.3) == Activation("leaky_relu", 0.3) == of_call("leaky_relu", negative_slope=0.3)
    assert of_call("elu", 0.5, inplace=True) == Activation("elu", 0.5)

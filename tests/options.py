"""The options of every op: a case for each pair of them, and cases drawn at random.

    for choice in pairs(SPACES["masked_autoregressive"]): ...

Names of maps, tails, activations, paths and methods are those of the ops' own tables, so that a new one is
in every pair from the day it is there. tests/ops/test_options.py sees to it that no argument is forgotten.
"""

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

import flowkern
from flowkern.ops import AffineElement, KnotMap, SplineElement
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._masked_autoregressive.conditioner import _NAMED as ACTIVATIONS
from flowkern.ops._neural_ode.field import ACTIVATIONS as FIELD_ACTIVATIONS
from flowkern.ops._neural_ode.tableau import TABLEAUX
from flowkern.ops._probability_path import PATHS
from flowkern.ops._rational_quadratic_spline import TAILS
from flowkern.ops._rational_quadratic_spline.knot_map import KINDS as KNOTS
from tests import tolerances
from tests.cases import coupling
from tests.cases import masked_autoregressive as masked_autoregressive_cases
from tests.cases import neural_ode as neural_ode_cases
from tests.cases import probability_path as probability_path_cases
from tests.cases import runge_kutta_stage as runge_kutta_stage_cases

# A unit is measured in a few samples: of so many cases, none of them chosen, the worst is farther out.
SLACK = 8


@dataclass(frozen=True)
class Space:
    """The values of each option of an op, and the case that a choice of them makes.

    Every space has the option dtype and, where the op has two directions, inverse, and wanted: of which
    inputs gradients are.
    """

    options: dict
    case: Callable[[dict], Any]


@dataclass(frozen=True)
class Call:
    """A case with the arguments of its module's `check`."""

    case: Any
    dtype: torch.dtype
    directed: dict
    wanted: str | None

    def check(self, backend, seed=0):
        """Raise AssertionError unless backend agrees with the float64 reference."""
        check = _MODULE[type(self.case)].check
        with _slack(SLACK):
            try:
                check(self.case, backend, self.dtype, seed=seed, **self.directed)
            except AssertionError:
                # A few copies can all round alike by chance: a unit is measured once more, in many.
                with mock.patch.object(coupling, "SAMPLES", 16 * coupling.SAMPLES):
                    check(self.case, backend, self.dtype, seed=seed, **self.directed)
        if self.wanted is not None:
            with flowkern.backend(backend):
                self._check_wanted(seed)

    def _check_wanted(self, seed):
        """The gradients that are wanted, and values alone, are what they are where all gradients are wanted."""
        x, others = self.case.tensors(self.dtype, seed=seed)
        inputs = [x, *(others if isinstance(others, list) else [others])]
        given = [i for i, t in enumerate(inputs) if t is not None]
        some = {"x": given[:1], "others": given[1:], "last": given[-1:], "none": []}[self.wanted]
        every, few = (self._differentiated(inputs, wanted) for wanted in (given, some))
        kept = [g for i, g in zip(given, every[1]) if i in some]
        limits = {"rtol": 1e-3, "atol": 1e-4} if self.dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
        torch.testing.assert_close((few[0], [*few[1]]), (every[0], kept), equal_nan=True, **limits)

    def _differentiated(self, inputs, wanted):
        leaves = [t if t is None else t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        others = leaves[1:] if len(leaves) > 2 else leaves[1]
        outputs = self.case(leaves[0], others, **self.directed)
        if not wanted:
            assert not any(output.requires_grad for output in outputs)
            return outputs, ()
        grads = [torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output) for output in outputs]
        found = torch.autograd.grad(outputs, [leaves[i] for i in wanted], grads)
        return [output.detach() for output in outputs], found


_MODULES = coupling, masked_autoregressive_cases, neural_ode_cases, probability_path_cases, runge_kutta_stage_cases
_MODULE = {module.Case: module for module in _MODULES}


@contextlib.contextmanager
def _slack(factor):
    """All tolerances times a factor."""
    with contextlib.ExitStack() as stack:
        for table in (*tolerances.TABLE.values(), tolerances.NEURAL_ODE, probability_path_cases.MOST):
            larger = {
                dtype: tolerances.Units(*(factor * unit for unit in most)) if isinstance(most, tuple) else factor * most
                for dtype, most in table.items()
            }
            stack.enter_context(mock.patch.dict(table, larger))
        stack.enter_context(mock.patch.object(tolerances, "MOST", factor * tolerances.MOST))
        yield


_BOTH = (False, True)
_COMMON = {"dtype": (torch.float32, torch.float64), "batch": (0, 1, 17, 33)}
_DIRECTED = {**_COMMON, "inverse": _BOTH, "wanted": ("x", "others", "last", "none")}


def call(space, choice):
    """The `Call` of a choice {option: value}."""
    directed = {"inverse": choice["inverse"]} if "inverse" in choice else {}
    return Call(space.case(choice), choice["dtype"], directed, choice.get("wanted"))


def pairs(space):
    """Few choices in which every value of an option meets every value of every other."""
    options, rng = space.options, random.Random(0)
    values = [(name, i) for name, of in options.items() for i in range(len(of))]
    left = {frozenset(pair) for pair in itertools.combinations(values, 2) if pair[0][0] != pair[1][0]}
    while left:
        chosen = dict(min(left, key=sorted))
        for name in sorted(options.keys() - chosen.keys(), key=lambda name: (-len(options[name]), name)):
            fresh = [
                sum(frozenset(((name, i), at)) in left for at in chosen.items()) for i in range(len(options[name]))
            ]
            chosen[name] = rng.choice([i for i, count in enumerate(fresh) if count == max(fresh)])
        left -= {frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)}
        yield {name: options[name][i] for name, i in chosen.items()}


def drawn(space, rng):
    """A choice at random."""
    return {name: rng.choice(values) for name, values in space.options.items()}


def text(choice):
    """For labels."""
    return ", ".join(f"{name}={value}" for name, value in choice.items())


# --- coupling ops --------------------------------------------------------------------------------

_COUPLING = {
    **_DIRECTED,
    "select": ("all", "index", "mask"),
    "features": (1, 2, 5, 17),
    "layout": ("contiguous", *coupling._LAYOUTS),
}


def _coupling(op, choice, **more):
    width = choice["features"] if choice["select"] == "all" else 2 * choice["features"] + 1
    layout = choice["layout"] if choice["batch"] else "contiguous"
    return coupling.Case(
        text(choice), op, (choice["batch"],), width, choice["features"], choice["select"], layout, **more
    )  # fmt: skip


def _affine(choice):
    options = {name: choice[name] for name in ("scale_map", "scale_first")}
    return _coupling("affine_coupling", choice, options=options)


def _spline(choice):
    bound = choice["bound"]
    if bound == "of features":
        bound = torch.linspace(0.5, 4.0, choice["features"])
    if bound == "box":
        bound = coupling.BOX if choice["tails"] == "none" else (-1.0, 2.0, -1.0, 2.0)
    options = {"tails": choice["tails"], "bound": bound, "knot_map": KnotMap(choice["knot_map"])}
    return _coupling("rational_quadratic_spline", choice, bins=choice["bins"], options=options)


_BINS = (1, 2, 5, 8, 10, 33)

# --- the masked autoregressive transform -----------------------------------------------------------

_MASKED = {
    **_DIRECTED,
    "element": (*SCALE_MAPS, *itertools.product(TAILS, KNOTS)),
    "scale_first": _BOTH,
    "bins": _BINS[:-1],
    "features": (1, 2, 5, 17),
    "order": ("natural", "reversed", "random", 1, 2, 3),
    "hidden": ((), (1,), (7,), (12, 9), (5, 17, 4)),
    "activation": tuple(ACTIVATIONS),
    "skip": (False, True, ((2, 1), (3, 0), (4, 0))),
    **dict.fromkeys(("bias", "rows", "gate", "norm"), _BOTH),
    "inputs": (None, 0, 1, 5),
    "of_context": tuple(ACTIVATIONS),
}


def _masked(choice):
    arguments = {
        name: value for name, value in choice.items() if name in masked_autoregressive_cases.Case.__dataclass_fields__
    }
    element = choice["element"]
    if element in SCALE_MAPS:
        per_feature = 1 if element == "additive" else 2
        element = AffineElement(element, choice["scale_first"])
    else:
        tails, knots = element
        per_feature = 3 * choice["bins"] + TAILS[tails][1]
        # Tails of NaN have no values to compare: there all features are inside.
        element = SplineElement(30.0 if tails == "none" else 3.0, tails, KnotMap(knots))
    if choice["skip"]:
        arguments["hidden"] = (choice["hidden"] or (6,))[:1] * 5
    order = choice["order"] if isinstance(choice["order"], str) else min(choice["order"], choice["features"])
    arguments |= {"element": element, "per_feature": per_feature, "order": order, "residual": choice["skip"]}
    # Gentle, so that the inverse of many features stays well conditioned.
    arguments["spread"] = 0.5
    return masked_autoregressive_cases.Case(text(choice), **arguments)


# --- the others ----------------------------------------------------------------------------------

_ODE = {
    **_COMMON,
    "features": (1, 3, 9),
    "hidden": ((), (5,), (4, 9), (3, 17, 4)),
    "activation": tuple(FIELD_ACTIVATIONS),
    "method": tuple(TABLEAUX),
    "steps": ((1, 1), (4, 1), (4, 2)),
    "times": ((0.0, 0.4, 1.0), (1.0, 0.3, 0.3), (0.5,)),
    "gradient": ("discrete", "adjoint"),
    "trace": (None, "exact", 1, 2),
    "time": (None, "concatenated", "fourier"),
    **dict.fromkeys(("kinetic", "jacobian", "rows", "bias"), _BOTH),
}


def _ode(choice):
    chosen = {name: choice[name] for name in neural_ode_cases.Case.__dataclass_fields__ if name in choice}
    steps, checkpoint = choice["steps"]
    activations = (choice["activation"],) * len(choice["hidden"])
    jacobian = choice["jacobian"] and choice["trace"] is not None
    chosen |= {"steps": steps, "checkpoint": checkpoint, "activations": activations, "jacobian": jacobian}
    return neural_ode_cases.Case(**chosen)


def _path(choice):
    return probability_path_cases.Case(
        choice["path"], choice["sigma"], choice["batch"], choice["shape"], choice["given"]
    )


def _stage(choice):
    return runge_kutta_stage_cases.Case(choice["shape"], choice["stages"], choice["by_row"] and choice["shape"] != ())


SPACES = {
    "affine_coupling": Space({**_COUPLING, "scale_map": tuple(SCALE_MAPS), "scale_first": _BOTH}, _affine),
    "rational_quadratic_spline": Space(
        {**_COUPLING, "tails": tuple(TAILS), "knot_map": KNOTS, "bins": _BINS, "bound": (3.0, "of features", "box")},
        _spline,
    ),
    "masked_autoregressive": Space(_MASKED, _masked),
    "neural_ode": Space(_ODE, _ode),
    "probability_path": Space(
        {**_COMMON, "path": tuple(PATHS), "sigma": (0.0, 0.3), "given": _BOTH, "shape": ((1,), (5,), (17,), (3, 4))},
        _path,
    ),
    "runge_kutta_stage": Space(
        {"dtype": _COMMON["dtype"], "shape": ((), (1,), (7, 3), (5, 17), (3, 2, 16), (0, 3)),
         "stages": tuple(range(1, 9)), "by_row": _BOTH},
        _stage,
    ),
}  # fmt: skip


def smaller(space, most):
    """The space with at most so many samples."""
    if "batch" not in space.options:
        return space
    batch = tuple(n for n in space.options["batch"] if n <= most)
    return replace(space, options=space.options | {"batch": batch})

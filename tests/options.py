"""The options of every op: a case for each pair of them, and cases drawn at random.

    for choice in pairs(SPACES["masked_autoregressive"]): ...

Names of maps, tails, activations, paths and methods are those of the ops' own tables, so that a new one is
in every pair from the day it is there. Each op's are in its folder of tests/cases; tests/ops/test_options.py
sees to it that no argument is forgotten.
"""

import contextlib
import itertools
import random
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

import flowkern
from tests import cases, tolerances
from tests.cases import coupling

# A unit is measured in a few samples: of so many cases, none of them chosen, the worst is farther out.
SLACK = 8


@dataclass(frozen=True)
class Call:
    """A case with the arguments of its module's `check`."""

    case: Any
    dtype: torch.dtype
    directed: dict
    wanted: str | None

    def check(self, backend, seed=0):
        """Raise AssertionError unless backend agrees with the float64 reference."""
        check = cases.of(self.case).check
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


@contextlib.contextmanager
def _slack(factor):
    """All tolerances times a factor."""
    with contextlib.ExitStack() as stack:
        for table in (getattr(module, "TOLERANCES", {}) for module in cases.modules().values()):
            larger = {
                dtype: tolerances.Units(*(factor * unit for unit in most)) if isinstance(most, tuple) else factor * most
                for dtype, most in table.items()
            }
            stack.enter_context(mock.patch.dict(table, larger))
        stack.enter_context(mock.patch.object(tolerances, "MOST", factor * tolerances.MOST))
        yield


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


SPACES = {op: module.SPACE for op, module in cases.modules("options").items()}


def smaller(space, most):
    """The space with at most so many samples."""
    if "batch" not in space.options:
        return space
    batch = tuple(n for n in space.options["batch"] if n <= most)
    return replace(space, options=space.options | {"batch": batch})

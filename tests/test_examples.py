"""The examples in the docstrings of the public functions are run, and there is one for each of them."""

import doctest
import inspect

import pytest
import torch

import flowkern
from flowkern import flows, matching, nn, ops, transforms

FOLDERS = (flowkern, flows, matching, nn, ops, transforms)
PUBLIC = {
    f"{folder.__name__}.{name}": getattr(folder, name)
    for folder in FOLDERS
    for name in folder.__all__
    if callable(getattr(folder, name))
}
EXAMPLES = {
    name: test for name, value in PUBLIC.items() for test in doctest.DocTestFinder(recurse=False).find(value, name)
}
# What is made to be given to a function whose example has it, or raised.
WITHOUT = {"flowkern.SolverError", "flowkern.transforms.Transform"}


@pytest.mark.parametrize("name", [name for name, test in EXAMPLES.items() if test.examples])
def test_example(name):
    torch.manual_seed(0)
    results = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name])
    assert results.attempted > 0 and results.failed == 0


def test_every_public_function_has_an_example():
    lacking = {name for name, test in EXAMPLES.items() if not test.examples}
    described = {name for name in lacking if inspect.isclass(PUBLIC[name]) and name.startswith("flowkern.ops.")}
    assert lacking - described == WITHOUT

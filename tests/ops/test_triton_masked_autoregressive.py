"""The masked autoregressive transform's Triton kernels, interpreted: equal to the float64 reference.

Of the environment and the order of imports see tests/conftest.py.
"""

import os
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch

from flowkern.ops import masked_autoregressive
from flowkern.ops._masked_autoregressive.conditioner import masks
from tests.cases.masked_autoregressive import CASES, check, cotangents, evaluate, raw_arguments, raw_terms
from tests.cases.tensors import laid_out
from tests.conftest import INTERPRETED

with mock.patch.dict(os.environ, INTERPRETED):
    from triton.runtime.interpreter import InterpretedFunction

    from flowkern.ops._masked_autoregressive import triton as masked
    from flowkern.ops._masked_autoregressive import triton_kernels

pytestmark = pytest.mark.usefixtures("interpreted")

# In float64 with an activation that does not saturate: 1 − tanh² is then all rounding, of the
# reference too, and no better value is at hand.
IN_FLOAT64 = ("exp", "k8", "coupling", "passes", "everything", "linear", "deep")


def small(case):
    """Few programs, because each is slow here, but more than one: tiles end within the batch."""
    return replace(case, batch={5: 2, 17: 3, 40: 2, 63: 35, 1023: 70}.get(case.batch, case.batch))


def equal(got, want):
    pairs = zip((*got[:3], *got.grads), (*want[:3], *want.grads))
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def evaluated(case, inverse=False, change=lambda x, tensors: None):
    """The `Result` of a case whose tensors have been changed."""
    x, tensors = case.tensors(torch.float64)
    return evaluate(case, *(change(x, tensors) or (x, tensors)), backend="triton", inverse=inverse)


def test_kernels_are_interpreted():
    """If not, something imported Triton before this file did."""
    for kernel in (triton_kernels._forward_kernel, triton_kernels._backward_kernel):
        assert isinstance(kernel, InterpretedFunction)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name, inverse):
    check(small(CASES[name]), "triton", torch.float32, inverse=inverse)


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_agrees_in_float64(name, inverse):
    case = replace(small(CASES[name]), activation="silu")
    check(case, "triton", torch.float64, inverse=inverse)


def test_programs_take_several_tiles(inverse, monkeypatch):
    """They use the same memory again, and nothing of the tile before is left in the results."""
    case = replace(CASES["context"], hidden=(5,), batch=70)
    want = evaluated(case, inverse)
    monkeypatch.setattr(masked, "_PROGRAMS", 1)
    assert equal(evaluated(case, inverse), want)


def test_layouts(inverse):
    """Strides are the kernels' business, those of rows that are all the same included."""
    case = replace(CASES["everything"], batch=5)

    def strided(x, tensors):
        rows = (t is not None and t.dim() == 2 and i % 5 for i, t in enumerate(tensors))
        tensors = [t[:1].expand_as(t) if r else t for r, t in zip(rows, tensors)]
        return x[:1].expand_as(x), [laid_out(t, "sliced") if i % 5 == 0 else t for i, t in enumerate(tensors)]

    def plain(x, tensors):
        return tuple(map(contiguous, strided(x, tensors)))

    def contiguous(tensors):
        one = isinstance(tensors, torch.Tensor)
        return tensors.contiguous() if one else [t if t is None else t.contiguous() for t in tensors]

    assert equal(evaluated(case, inverse, strided), evaluated(case, inverse, plain))


def test_gradient_of_x_alone(inverse):
    """Without a tape."""
    case = replace(CASES["everything"], batch=3)
    x, tensors = case.tensors(torch.float64)
    y, logabsdet = case(x.requires_grad_(), tensors, inverse)
    grad_y, grad_l = cotangents(y, logabsdet)
    (grad_x,) = torch.autograd.grad((y, logabsdet), x, (grad_y, grad_l))
    assert torch.equal(grad_x, evaluated(case, inverse).grad_x)


def test_masked_weights_are_not_read(inverse):
    case = replace(CASES["context"], batch=3)
    ranks = case.degrees().on("cpu")[2]

    def spoilt(x, tensors):
        weights = tensors[::5]
        tensors = list(tensors)
        for k, mask in enumerate(masks(case.features, ranks, weights)):
            tensors[5 * k] = weights[k].masked_fill(~mask, float("nan"))
        return x, tensors

    got, want = evaluated(case, inverse, spoilt), evaluated(case, inverse)
    assert equal(got, want)


def test_nan_stays_in_its_row(inverse):
    case = replace(CASES["context"], batch=5)

    def spoilt(x, tensors):
        x[2, 1] = float("nan")

    got, want = evaluated(case, inverse, spoilt), evaluated(case, inverse)
    assert got.logabsdet[2].isnan() and got.y[2].isnan().any()
    others = torch.arange(5) != 2
    for a, b in zip(got[:3], want[:3]):
        assert torch.equal(a[others], b[others])


def test_opcheck(inverse):
    """Schemas are honest, and the fake kernels agree with the real ones."""
    case = replace(CASES["inputs_with_everything"], batch=2, features=2)
    x, *arguments = raw_arguments(case, torch.float64, inverse)
    ops, forward = torch.ops.flowkern_triton, (x, *arguments, *raw_terms(case, torch.float64))
    torch.library.opcheck(ops.masked_autoregressive, forward)
    y, logabsdet = ops.masked_autoregressive(*forward)
    for tape in (False, True):
        call = (*cotangents(y, logabsdet), x, y, tape, *arguments)
        torch.library.opcheck(ops.masked_autoregressive_backward, call)


def test_compile_is_one_graph(inverse):
    case = replace(CASES["context"], batch=3)
    degrees = case.degrees()
    op = partial(masked_autoregressive, inverse=inverse)

    def values(x, tensors, inverse=None):
        return op(x, case.layers(tensors), degrees, case.element)

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend="aot_eager")
    x, tensors = case.tensors()
    got = evaluate(compiled, x, tensors, backend="triton")
    assert equal(got, evaluate(values, x, tensors, backend="triton"))

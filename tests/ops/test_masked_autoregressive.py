"""The masked autoregressive transform: its reference, the dispatcher, compilers, bad arguments."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.func import grad, vmap

import flowkern
from flowkern.backends import unavailable
from flowkern.ops import (
    Degrees,
    masked_autoregressive,
)
from tests.cases.masked_autoregressive import CASES, check, cotangents, evaluate, raw_arguments, raw_terms

COMPILER = {"reference": "aot_eager", "cpu": "inductor"}
CASE = CASES["context"]


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(backend, name):
    for dtype in (torch.float32, torch.float64):
        for inverse in (False, True):
            check(CASES[name], backend, dtype, inverse=inverse)


# --- dispatcher ops ------------------------------------------------------------------------------


def test_opcheck(inverse):
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    op, gradients = torch.ops.flowkern.masked_autoregressive, torch.ops.flowkern.masked_autoregressive_gradients
    for name in ("context", "everything", "inputs"):
        case = replace(CASES[name], batch=3)
        x, tensors, *rest = raw_arguments(case, torch.float64, inverse)
        forward = (x, tensors, *rest, *raw_terms(case, torch.float64))
        torch.library.opcheck(op, forward)
        y, logabsdet = op(*forward)
        given = [t is not None for t in tensors]
        for needs in (given, [n and i % 2 == 0 for i, n in enumerate(given)], [False] * len(given)):
            arguments = (*cotangents(y, logabsdet), x, y, needs, tensors, *rest)
            torch.library.opcheck(gradients, arguments)


def test_raw_op_refuses_what_it_cannot_read():
    """The dispatcher op is public too: it checks shapes, dtypes and numbers itself."""
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    case = CASES["inputs"]
    x, tensors, order, ends, *rest = raw_arguments(case)
    terms, kinds, slopes_of_terms = raw_terms(case)
    op = torch.ops.flowkern.masked_autoregressive
    activations, slopes, skips, _, _, kinds_of_element, constants = rest

    def changed(at, tensor):
        return [*tensors[:at], tensor, *tensors[at + 1 :]]

    bad = (
        ("x: expected shape", (x[0], tensors, order, ends, *rest)),
        ("weight 0: expected 4 columns", (x[:, :4], tensors, order, ends, *rest)),
        ("weight 0: expected the dtype of x", (x.double(), tensors, order, ends, *rest)),
        ("tensors: expected five", (x, tensors[:-1], order, ends, *rest)),
        ("layer 0 has no weight", (x, changed(0, None), order, ends, *rest)),
        ("weight 0: expected 5 columns", (x, changed(0, tensors[0][:, :2]), order, ends, *rest)),
        ("bias 0: expected shape", (x, changed(1, tensors[1][:3]), order, ends, *rest)),
        ("bias 0: expected the dtype", (x, changed(1, tensors[1].double()), order, ends, *rest)),
        ("order: expected 26 places", (x, tensors, order[1:], ends, *rest)),
        ("expected contiguous int64", (x, tensors, order.int(), ends, *rest)),
        ("order: expected entries in .* got 100", (x, tensors, order + 100, ends, *rest)),
        ("ends: expected a row per layer", (x, tensors, order, ends[1:], *rest)),
        ("ends: expected ascending counts up to 5, got 100", (x, tensors, order, ends + 100, *rest)),
        ("activations: expected 0 to 7, got 9", (x, tensors, order, ends, [9] * 3, *rest[1:])),
        ("skips: expected", (x, tensors, order, ends, activations, slopes, [0, 5, 0], *rest[3:])),
        ("element: expected 0 to 1, got 2", (x, tensors, order, ends, *rest[:4], 2, kinds_of_element, constants)),
        ("kinds: expected two, got 3", (x, tensors, order, ends, *rest[:5], [0] * 3, constants)),
        ("kinds: expected 0 to 7, got 8", (x, tensors, order, ends, *rest[:4], 0, [8, 0], constants)),
        ("kinds: expected 0 to 2, got 3", (x, tensors, order, ends, *rest[:4], 1, [3, 0], constants)),
        ("kinds: expected 0 to 1, got 2", (x, tensors, order, ends, *rest[:4], 1, [0, 2], constants)),
        ("constants: got 2", (x, tensors, order, ends, *rest[:6], constants[:2])),
    )
    for message, arguments in bad:
        with pytest.raises(RuntimeError, match=message):
            op(*arguments, terms, kinds, slopes_of_terms)
    context, weight, bias, *others = terms
    bad = (
        ("context 0: expected a row", ([context[:3], weight, bias, *others], kinds, slopes_of_terms)),
        ("context 0: expected a row", ([context[0], weight, bias, *others], kinds, slopes_of_terms)),
        ("terms: expected the dtype of x", ([context.double(), weight, bias, *others], kinds, slopes_of_terms)),
        ("weight 0: expected shape", ([context, None, bias, *others], kinds, slopes_of_terms)),
        ("weight 0: expected shape", ([context, weight[1:], bias, *others], kinds, slopes_of_terms)),
        ("weight 0: expected shape", ([context, weight[:, 1:], bias, *others], kinds, slopes_of_terms)),
        ("bias 0: expected shape", ([context, weight, bias[1:], *others], kinds, slopes_of_terms)),
        ("terms: expected three tensors", (terms[1:], kinds, slopes_of_terms)),
        ("terms: expected three tensors", ([*terms] * 2, kinds * 2, slopes_of_terms * 2)),
        ("terms: expected three tensors", (terms, kinds[1:], slopes_of_terms)),
        ("term_activations: expected 0 to 7, got 9", (terms, (9, *kinds[1:]), slopes_of_terms)),
    )
    for message, of_context in bad:
        with pytest.raises(RuntimeError, match=message):
            op(x, tensors, order, ends, *rest, *of_context)


# --- compilers and torch.func --------------------------------------------------------------------


def test_compile_is_one_graph(backend, inverse):
    """Values and gradients under fullgraph=True, with the backend chosen inside the graph."""
    degrees = CASE.degrees()
    op = partial(masked_autoregressive, inverse=inverse)

    def values(x, tensors, inverse=None):
        with flowkern.backend(backend):
            return op(x, CASE.layers(tensors), degrees, CASE.element)

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend=COMPILER[backend])
    x, tensors = CASE.tensors()
    want = evaluate(values, x, tensors, backend=backend)
    got = evaluate(compiled, x, tensors, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_compile_takes_a_context_as_it_is(on_backend, backend, inverse):
    case = CASES["inputs"]
    degrees = case.degrees()
    op = partial(masked_autoregressive, inverse=inverse)

    @torch.no_grad()
    def values(x, tensors):
        return op(x, case.layers(tensors), degrees, case.element)

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend=COMPILER[backend])
    x, tensors = case.tensors()
    torch.testing.assert_close(compiled(x, tensors), values(x, tensors), rtol=1e-5, atol=1e-5)


def test_export(on_backend):
    case = replace(CASES["relu"], batch=9)
    degrees = case.degrees()

    class Module(torch.nn.Module):
        def forward(self, x, tensors):
            return masked_autoregressive(x, case.layers(tensors), degrees, case.element, inverse=True)

    x, tensors = case.tensors()
    batch = {0: torch.export.Dim("batch", min=2)}
    shapes = batch, [None if t is None else {} for t in tensors]
    program = torch.export.export(Module(), (x, tensors), dynamic_shapes=shapes)
    x = torch.randn(20, 5)
    torch.testing.assert_close(program.module()(x, tensors), case(x, tensors, inverse=True))


def test_vmap(on_backend, inverse):
    """Over samples (x and their biases and gates), and over weights."""
    case = replace(CASES["everything"], batch=12)
    x, tensors = case.tensors(torch.float64)
    want = case(x, tensors, inverse=inverse)
    rows = [i for i, t in enumerate(tensors) if t is not None and len(t) == 12]

    def mapped(x, *some):
        every = list(tensors)
        for i, tensor in zip(rows, some):
            every[i] = tensor
        return case(x, every, inverse=inverse)

    some = [tensors[i].unflatten(0, (3, 4)) for i in rows]
    got = vmap(mapped)(x.unflatten(0, (3, 4)), *some)
    torch.testing.assert_close([g.flatten(0, 1) for g in got], list(want))
    got = vmap(mapped, 1)(x.unsqueeze(0), *(tensors[i].unsqueeze(0) for i in rows))
    torch.testing.assert_close([g.flatten(0, 1) for g in got], list(want))
    weights = torch.stack((tensors[0], 2 * tensors[0]))
    got = vmap(lambda w: case(x, [w, *tensors[1:]], inverse=inverse))(weights)
    for n in (0, 1):
        want = case(x, [weights[n], *tensors[1:]], inverse=inverse)
        torch.testing.assert_close([g[n] for g in got], list(want))


def test_per_sample_gradients(on_backend, inverse):
    """In x and in a weight, as differential privacy and influence functions take them."""
    case = CASES["relu"]
    x, tensors = case.tensors(torch.float64)
    case.degrees()  # drawn at random, which vmap refuses

    def loss(x, weight):
        y, logabsdet = case(x, [weight, *tensors[1:]], inverse=inverse)
        return logabsdet.sum() - y.square().sum()

    by_x, by_weight = vmap(grad(loss, (0, 1)), (0, None))(x.unsqueeze(1), tensors[0])
    want_x, want_weight = grad(loss, (0, 1))(x, tensors[0])
    torch.testing.assert_close(by_x.squeeze(1), want_x)
    torch.testing.assert_close(by_weight.sum(0), want_weight)
    torch.testing.assert_close(by_weight[3], grad(loss, 1)(x[3:4], tensors[0]))


# --- autograd, dtypes, shapes --------------------------------------------------------------------


def test_only_the_gradients_asked_for(backend, inverse):
    x, tensors = CASE.tensors()
    want = evaluate(CASE, x, tensors, backend=backend, inverse=inverse)
    grads = cotangents(want.y, want.logabsdet)
    for at in (-1, 0, 1):
        inputs = [x, *tensors]
        inputs[at + 1] = inputs[at + 1].detach().requires_grad_()
        with flowkern.backend(backend):
            outputs = CASE(inputs[0], inputs[1:], inverse=inverse)
            (got,) = torch.autograd.grad(outputs, inputs[at + 1], grads)
        assert torch.equal(got, want.grad_x if at < 0 else want.grads[at])
    with flowkern.backend(backend):
        assert not any(t.requires_grad for t in CASE(x, tensors, inverse=inverse))


def test_gradient_of_one_output_only(on_backend, inverse):
    x, tensors = CASE.tensors(torch.float64)
    leaves = [t.requires_grad_() for t in (x, *tensors) if t is not None]
    y, logabsdet = CASE(x, tensors, inverse=inverse)
    total = torch.autograd.grad(y.sum() + logabsdet.sum(), leaves, retain_graph=True)
    of_y = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    of_logabsdet = torch.autograd.grad(logabsdet.sum(), leaves)
    for parts in zip(total, of_y, of_logabsdet):
        torch.testing.assert_close(parts[0], parts[1] + parts[2])


def test_a_change_before_the_backward_is_noticed(on_backend, inverse):
    x, tensors = CASE.tensors()
    leaves = [t.requires_grad_() for t in (x, *tensors) if t is not None]
    y, logabsdet = CASE(x, tensors, inverse=inverse)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y.sum() + logabsdet.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(on_backend, dtype, inverse):
    """Computed in float32, returned in x's dtype, gradients in that of their tensor."""
    x, tensors = CASE.tensors()
    halves = [t if t is None else t.to(dtype).requires_grad_() for t in (x, *tensors)]
    y, logabsdet = CASE(halves[0], halves[1:], inverse=inverse)
    wide = [t if t is None else t.detach().float() for t in halves]
    want, want_l = CASE(wide[0], wide[1:], inverse=inverse)
    assert (y.dtype, logabsdet.dtype) == (dtype, torch.float32)
    assert torch.equal(y, want.to(dtype)) and torch.equal(logabsdet, want_l)
    (y.sum() + logabsdet.sum()).backward()
    assert all(t.grad.dtype == dtype for t in halves if t is not None)


def test_memory_layouts_change_nothing(backend, inverse):
    """Transposed, expanded and strided inputs and weights."""
    case = replace(CASES["everything"], batch=20)
    x, tensors = case.tensors()
    want = evaluate(case, x, tensors, backend=backend, inverse=inverse)
    grads = cotangents(want.y, want.logabsdet)
    strided = [t if t is None else torch.stack((t, t), -1)[..., 0] for t in (x, *tensors)]
    turned = [t if t is None or t.dim() < 2 else t.mT.contiguous().mT for t in (x, *tensors)]
    for other in (strided, turned):
        got = evaluate(case, other[0], other[1:], backend=backend, inverse=inverse, grads=grads)
        for quantity, g, w in zip(got._fields, got, want):
            assert quantity == "grads" or backend == "reference" or torch.equal(g, w), quantity
        torch.testing.assert_close(got, want)  # torch's products of other layouts may round otherwise


def test_batch_dimensions_broadcast(on_backend, inverse):
    x, tensors = CASE.tensors(torch.float64)
    x, tensors[1], tensors[6] = x[:4].unsqueeze(1), tensors[1][:3], tensors[6][:3]
    y, logabsdet = CASE(x, tensors, inverse=inverse)
    assert (y.shape, logabsdet.shape) == ((4, 3, 5), (4, 3))
    rows = [t.expand(4, *t.shape).flatten(0, 1) for t in (tensors[1], tensors[6])]
    wide = [tensors[0], rows[0], *tensors[2:6], rows[1], *tensors[7:]]
    want = CASE(x.expand(4, 3, 5).flatten(0, 1), wide, inverse=inverse)
    torch.testing.assert_close((y.flatten(0, 1), logabsdet.flatten()), want)


def test_a_context_of_all_samples_and_batch_dimensions(on_backend, inverse):
    """Given once, or with dimensions that broadcast; in half precision too."""
    case = CASES["inputs"]
    x, tensors = case.tensors(torch.float64)
    for shape in ((1,), (3, 1), (4, 1, 1), (4, 3, 1)):
        context = torch.randn(*shape[:-1], case.inputs, dtype=torch.float64)
        y, logabsdet = case(x[:4].unsqueeze(1), _with_context(case, tensors, context), inverse=inverse)
        rows = [t.expand(4, 3, -1).flatten(0, 1) for t in (x[:4].unsqueeze(1), context)]
        want = case(rows[0], _with_context(case, tensors, rows[1]), inverse=inverse)
        want = [w.unflatten(0, (4, 3))[:, : y.shape[1]] for w in want]
        torch.testing.assert_close((y, logabsdet), tuple(want))
    halves = [t if t is None else t.bfloat16() for t in (x, *tensors)]
    wide = [t if t is None else t.float() for t in halves]
    (y, logabsdet), (want, want_l) = case(halves[0], halves[1:]), case(wide[0], wide[1:])
    assert torch.equal(y, want.bfloat16()) and torch.equal(logabsdet, want_l)


def test_no_gradient_is_wanted_of_a_context_that_has_one(on_backend, inverse):
    """What the kernel takes as it is, and what goes through torch, are the same function."""
    case = CASES["inputs"]
    x, tensors = case.tensors(torch.float64)
    want = case(x, tensors, inverse=inverse)
    graph = case(x, [t if t is None else t.requires_grad_() for t in tensors], inverse=inverse)
    torch.testing.assert_close(graph, want)
    got = vmap(lambda x, c: case(x, _with_context(case, tensors, c), inverse=inverse))
    context = tensors[5 * (len(case.hidden) + 1)]
    torch.testing.assert_close(got(x.unsqueeze(1), context.unsqueeze(1))[0].squeeze(1), want[0])


def _with_context(case, tensors, context):
    at = 5 * (len(case.hidden) + 1)
    return [*tensors[:at], context, *tensors[at + 1 :]]


def test_degrees_of_units_that_see_the_same_features_are_alike():
    """Below all features, between two and above all: only the features that are seen count."""
    want = Degrees([1, 3], [[0, 1, 3], [0, 1, 3]]).on("cpu")
    for hidden in ([[-1, 2, 3], [-2, 1, 9]], [[-2, 1, 9], [-1, 2, 3]]):
        assert all(torch.equal(*pair) for pair in zip(Degrees([1, 3], hidden).on("cpu"), want))


def test_degrees_of_many_features():
    """Ten thousand features and forty thousand units are sorted in well under a second."""
    degrees = Degrees(torch.arange(10_000), [torch.arange(40_000) % 9_999])
    order, ends, ranks = degrees.on("cpu")
    assert len(order) == len(ranks) == 50_000 and ends.shape == (2, 10_001)
    assert degrees.on("cpu")[0] is order

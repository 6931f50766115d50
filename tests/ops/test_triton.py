"""The Triton kernels, run by Triton's interpreter: equal to the float64 reference.

Of the environment and the order of imports see tests/conftest.py.
"""

import itertools
import os
from dataclasses import replace
from unittest import mock

import pytest
import torch

import flowkern
from flowkern.ops import ScaleMap, SoftplusKnots, affine_coupling, rational_quadratic_spline
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._rational_quadratic_spline.kinds import KNOT_MAPS, TAILS
from tests.cases.coupling import AFFINES, SPLINES, TYPICAL, check, check_gradients_fit, cotangents, evaluate
from tests.cases.tensors import laid_out
from tests.conftest import INTERPRETED
from tests.ops import branches

with mock.patch.dict(os.environ, INTERPRETED):
    from triton.runtime.interpreter import InterpretedFunction

    from flowkern.ops import _triton
    from flowkern.ops._affine_coupling import triton as affine
    from flowkern.ops._rational_quadratic_spline import triton as spline

pytestmark = pytest.mark.usefixtures("interpreted")

HALVES = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float64),
]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=TYPICAL)
def case(request):
    return TYPICAL[request.param]


def small(case):
    """Few programs, because each is slow here, but more than one: tiles end within the batch."""
    rows = {63: 19, 1023: 70}.get(case.batch[0] if case.batch else 0)
    return case if rows is None else replace(case, batch=(3 if case.bins > 16 else rows,))


def test_kernels_are_interpreted():
    """If not, something imported Triton before this file did."""
    for module in (affine, spline):
        assert isinstance(module._forward_kernel, InterpretedFunction)


# --- agreement with the reference ----------------------------------------------------------------


@pytest.mark.parametrize("name", AFFINES)
def test_affine_agrees_with_the_reference(name, inverse):
    for dtype in (torch.float64, torch.float32):
        check(small(AFFINES[name]), "triton", dtype, inverse=inverse)


@pytest.mark.parametrize("name", SPLINES)
def test_spline_agrees_with_the_reference(name, inverse):
    for dtype in (torch.float64, torch.float32):
        check(small(SPLINES[name]), "triton", dtype, inverse=inverse)


@pytest.mark.parametrize("name", ["k1", "k8", "none", "softclip_circular"])
def test_spline_agrees_at_large_spread(name, inverse):
    case = replace(small(SPLINES[name]), spread=6.0)
    check(case, "triton", torch.float32, inverse=inverse, seed=1)


@pytest.mark.parametrize("dtype, params_dtype", HALVES)
def test_mixed_dtypes(case, dtype, params_dtype, inverse):
    case = replace(case, batch=(19,))
    check(case, "triton", dtype, params_dtype=params_dtype, inverse=inverse)
    x, params = case.tensors(dtype, params_dtype=params_dtype)
    result = evaluate(case, x, params, backend="triton", inverse=inverse)
    wide = torch.float64 if params_dtype == torch.float64 else torch.float32
    assert [t.dtype for t in result] == [dtype, wide, dtype, params_dtype]


@pytest.mark.parametrize(
    "rows, width, features",
    [
        (0, 3, 3),
        (1, 1, 1),
        (2, 0, 0),
        (3, 5, 0),
        (130, 1, 1),
        (15, 9, 7),
        (17, 33, 33),
        (2, 300, 130),
    ],  # fmt: skip
)
def test_sizes_across_the_edges_of_tiles(case, rows, width, features, inverse):
    select = "all" if width == features else "mask"
    case = replace(case, batch=(rows,), width=width, features=features, select=select, bins=2)
    check(case, "triton", torch.float64, inverse=inverse)


def test_rows_wider_than_a_tile(inverse):
    case = replace(AFFINES["exp"], batch=(3,), width=1100, features=1027, select="mask")
    check(case, "triton", torch.float64, inverse=inverse)


def test_bins_along_either_axis(inverse, monkeypatch):
    """Which axis of a tile holds the bins depends on the version of Triton, and changes nothing."""
    spec = spline._spec
    monkeypatch.setattr(spline, "_spec", lambda *a: replace(spec(*a), axis=1 - spec(*a).axis))
    for name in ("k3", "circular", "softclip"):
        check(small(SPLINES[name]), "triton", torch.float64, inverse=inverse)


@pytest.mark.parametrize("kind", ["tanh", "atan", "softplus", "sigmoid", "reciprocal_sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_are_relatively_accurate(kind, dtype):
    """log s of tiny, moderate and huge raw scales, to a few roundings, and its derivative."""
    raw = torch.logspace(-30, 30, 241, dtype=torch.float64).to(dtype)
    raw = torch.cat((raw, -raw))
    params = torch.stack((torch.zeros_like(raw), raw), dim=-1).unsqueeze(1)
    scale_map = kind if kind in ("tanh", "atan") else ScaleMap(kind, b=0.0)

    def log_scale(dtype):
        given = params.to(dtype, copy=True).requires_grad_()
        x, inverse = torch.zeros(len(raw), 1, dtype=dtype), kind == "reciprocal_sigmoid"  # not beyond inf
        _, logabsdet = affine_coupling(x, given, scale_map=scale_map, inverse=inverse)
        return logabsdet, torch.autograd.grad(logabsdet.sum(), given)[0]

    got, got_grad = log_scale(dtype)
    with flowkern.backend("reference"):
        want, want_grad = log_scale(torch.float64)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=8 * eps, atol=4 * eps * (kind != "tanh"))
    torch.testing.assert_close(got_grad.double(), want_grad, rtol=8 * eps, atol=4 * eps)


# --- what is decided when a kernel is compiled ---------------------------------------------------

# All combinations of the options that kernels are compiled for.
COMBINATIONS = {
    "affine_coupling": [
        {"scale_map": kind, "scale_first": first}
        for kind, first in itertools.product((*SCALE_MAPS, ScaleMap("softplus", b=0.0)), (False, True))
    ],
    "rational_quadratic_spline": [
        {"tails": tails, "knot_map": kind, "bound": bound}
        for tails, kind, bound in itertools.product(TAILS, KNOT_MAPS, (3.0, torch.tensor([2.0, 3.0])))
    ],
}
MODULES = {"affine_coupling": affine, "rational_quadratic_spline": spline}


@pytest.mark.parametrize("op", COMBINATIONS)
def test_every_combination_and_every_branch(op):
    """Each agrees with the reference, and together they take every `if` of the kernels both ways."""
    files = [module.__file__ for module in (MODULES[op], _triton)]
    with branches.traced(files) as steps:
        for options, select, inverse in itertools.product(COMBINATIONS[op], ("all", "index"), (False, True)):
            case = replace(
                TYPICAL[op], name=f"{options}", batch=(3,), width=3 if select == "index" else 2,
                features=2, select=select, bins=3, options=options,
            )  # fmt: skip
            check(case, "triton", torch.float32, inverse=inverse)
    for file in files:
        assert branches.not_taken(file, steps[file]) == []


# --- what lies outside, and what is no number ----------------------------------------------------


@pytest.mark.parametrize("tails", ["identity", "circular"])
def test_outside_the_interval_is_the_identity(tails, inverse):
    """Whatever the parameters, and with gradients that are exactly 1 and 0."""
    x = torch.tensor([[-1e30, -3.0001, 3.0001, 1e30, INF, -INF]], dtype=torch.float32).mT
    params = torch.randn(6, 1, 24 if tails == "circular" else 23) * 50
    params[1], params[2, 0, ::2] = INF, NAN
    x, params = x.requires_grad_(), params.requires_grad_()
    y, logabsdet = rational_quadratic_spline(x, params, tails=tails, bound=3.0, inverse=inverse)
    assert torch.equal(y, x) and not logabsdet.any()
    gx, gp = torch.autograd.grad((y, logabsdet), (x, params), (torch.ones_like(y), logabsdet + 1))
    assert torch.equal(gx, torch.ones_like(x)) and not gp.any()


def test_outside_without_tails_is_nan(inverse):
    x = torch.tensor([[-0.1, 0.5], [1.1, 0.5], [0.0, 1.0]], requires_grad=True)
    params = torch.randn(3, 2, 25, requires_grad=True)
    box = (0.0, 1.0, 0.0, 1.0)
    y, logabsdet = rational_quadratic_spline(x, params, tails="none", bound=box, inverse=inverse)
    assert y.isnan().tolist() == [[True, False], [True, False], [False, False]]
    assert logabsdet.isnan().tolist() == [True, True, False]
    assert y[2].tolist() == [0.0, 1.0]
    _, gp = torch.autograd.grad((y, logabsdet), (x, params), (y * 0 + 1, logabsdet * 0 + 1))
    assert not gp[:2, 0].any()


@pytest.mark.parametrize("where", ["x", "params"])
def test_nan_stays_in_its_row(case, where, inverse):
    x, params = replace(case, batch=(19,)).tensors(inverse=inverse)
    clean = evaluate(case, x, params, backend="triton", inverse=inverse)
    feature = case.selection()["index"][0]
    x[7, feature] = NAN if where == "x" else 0.1
    if where == "params":
        params[7, 0, 0] = NAN
    got = evaluate(case, x, params, backend="triton", inverse=inverse)
    want = evaluate(case, x, params, backend="reference", inverse=inverse)
    others = torch.arange(19) != 7
    for g, c in zip(got, clean):
        assert torch.equal(g[others], c[others])
    for g, w in zip(got[:2], want[:2]):
        assert torch.equal(g[7].isnan(), w[7].isnan())
    assert got.y[7, feature].isnan()


def test_extreme_parameters(inverse):
    """Finite results, and gradients wherever the reference has them, with every bin squeezed."""
    for tails, size in (("identity", 23), ("none", 25)):
        params = 1e4 * torch.randn(32, 2, size, dtype=torch.float64)
        x = torch.rand(32, 2, dtype=torch.float64) * 2 - 1

        def op(x, params, inverse, tails=tails):
            return rational_quadratic_spline(x, params, tails=tails, inverse=inverse)

        got = evaluate(op, x, params, backend="triton", inverse=inverse)
        want = evaluate(op, x, params, backend="reference", inverse=inverse)
        for g, w in zip(got, want):
            assert g.isfinite().all()
            torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [SPLINES["k8"], SPLINES["softclip"], AFFINES["atan"]], ids=lambda c: c.name)
def test_gradients_are_finite_wherever_they_fit(case, inverse):
    check_gradients_fit(case, "triton", inverse)


@pytest.mark.parametrize("bad", [NAN, INF, 0.0, -1.0])
def test_a_bound_that_is_none_gives_nan(bad, inverse):
    """The op cannot check bounds on a GPU either."""
    case = TYPICAL["rational_quadratic_spline"]
    x, params = case.tensors()
    arguments = torch.tensor([4, 0, 1]), torch.tensor([1.0, bad, 1.0]), inverse, 0, 0.0, 1.0, 0.0, 1.0
    y, logabsdet = spline.forward(x, params, *arguments, *SoftplusKnots().numbers())
    assert torch.equal(y.isnan().nonzero()[:, 1], torch.zeros(len(x), dtype=torch.int64))
    assert logabsdet.isnan().all()


def test_an_index_out_of_range_touches_nothing(case, inverse):
    """The op cannot check an index on a GPU without waiting for it: the row's log-det says so."""
    x, params = case.tensors()
    kernels = affine if case.op == "affine_coupling" else spline
    numbers = (
        (inverse, False, *ScaleMap("exp").numbers())
        if kernels is affine
        else (None, inverse, 0, -3.0, 3.0, -3.0, 3.0, *SoftplusKnots().numbers())
    )
    index = torch.tensor([2, case.width, -1])
    y, logabsdet = kernels.forward(x, params, index, *numbers)
    assert logabsdet.isnan().all()
    kept = torch.arange(case.width) != 2
    assert torch.equal(y[:, kept], x[:, kept]) and not torch.equal(y, x)
    grads = cotangents(y, logabsdet)
    grad_x, grad_params = kernels.backward(*grads, x, params, index, *numbers)
    assert torch.equal(grad_x[:, kept], grads[0][:, kept])
    assert grad_params.shape == params.shape


# --- memory layouts ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_gradients_are_laid_out_as_their_inputs(case, layout, inverse):
    """So that the views by which a conditioner's output was read lead back without a copy."""
    case = replace(case, batch=(5,))
    x, params = (laid_out(t, layout) for t in case.tensors())
    grads = cotangents(x, x[:, 0])
    grads = laid_out(grads[0], layout), laid_out(grads[1][:, None], layout)[:, 0]
    plain = [t.contiguous() for t in (x, params)]
    got = evaluate(case, x, params, backend="triton", inverse=inverse, grads=grads)
    want = evaluate(case, *plain, backend="triton", inverse=inverse, grads=grads)
    assert all(torch.equal(*pair) for pair in zip(got, want))
    grad_params = _triton.new_grads(x, params)[1]
    dense = layout in ("contiguous", "transposed")
    assert grad_params.stride() == (params if dense else plain[1]).stride()


# --- the machinery of torch ----------------------------------------------------------------------


def test_opcheck(case):
    """Schemas are honest and the fake kernels agree with the real ones, whatever the strides."""
    op = getattr(torch.ops.flowkern_triton, case.op)
    backward = getattr(torch.ops.flowkern_triton, case.op + "_backward")
    numbers = (
        (False, False, *ScaleMap("sigmoid").numbers())
        if case.op == "affine_coupling"
        else (torch.full((3,), 3.0), False, 0, 0.0, 1.0, 0.0, 1.0, *SoftplusKnots().numbers())
    )
    for layout in ("contiguous", "transposed", "expanded"):
        x, params = (laid_out(t, layout) for t in replace(case, batch=(5,)).tensors())
        arguments = (x, params, case.selection()["index"], *numbers)
        torch.library.opcheck(op, arguments)
        torch.library.opcheck(backward, (*cotangents(*op(*arguments)), *arguments))


def test_raw_op_refuses_what_it_cannot_read(case):
    op = getattr(torch.ops.flowkern_triton, case.op)
    x, params = case.tensors()
    index = case.selection()["index"]
    numbers = (
        (False, False, *ScaleMap("exp").numbers())
        if case.op == "affine_coupling"
        else (None, False, 0, -3.0, 3.0, -3.0, 3.0, *SoftplusKnots().numbers())
    )
    for message, bad in (
        ("x", (x[0], params, index)),
        ("params", (x, params[0], index)),
        ("params", (x[1:], params, index)),
        ("index", (x, params, index[1:])),
        ("index", (x, params, index.int())),
        ("index", (x, params, None)),
    ):
        with pytest.raises(ValueError, match="^" + message):
            op(*bad, *numbers)


def test_compile_is_one_graph(case):
    def values(x, params, inverse):
        return case(x, params, inverse=inverse)

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend="aot_eager")
    for rows in (5, 19):
        x, params = replace(case, batch=(rows,)).tensors()
        for tensor in (x, params):
            torch._dynamo.mark_dynamic(tensor, 0)
        got = evaluate(compiled, x, params, backend="triton")
        want = evaluate(values, x, params, backend="triton")
        assert all(torch.equal(*pair) for pair in zip(got, want))


def test_export(case):
    class Module(torch.nn.Module):
        def forward(self, x, params):
            return case(x, params, inverse=True)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Module(), case.tensors(), dynamic_shapes=({0: batch}, {0: batch}))
    inputs = replace(case, batch=(19,)).tensors()
    assert all(torch.equal(*p) for p in zip(program.module()(*inputs), Module()(*inputs)))


def test_derivatives_of_derivatives(case, inverse):
    """Second derivatives take the kernel's backward for the first ones."""
    x, params = (t.requires_grad_() for t in replace(case, batch=(3,)).tensors(torch.float64))
    results = []
    for backend in ("triton", "reference"):
        with flowkern.backend(backend):
            y, logabsdet = case(x, params, inverse=inverse)
            loss = y.square().sum() + logabsdet.sum()
            first = torch.autograd.grad(loss, (x, params), create_graph=True)
            results.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, params)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)

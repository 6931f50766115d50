"""The machinery around the kernels: dispatcher ops, compile, export, vmap, autocast, layouts."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap

import flowkern
from flowkern.backends import unavailable
from tests.cases.coupling import AFFINES, SPLINES, TYPICAL, cotangents, evaluate, raw_arguments
from tests.cases.tensors import laid_out

COMPILER = {"reference": "aot_eager", "cpu": "inductor"}


@pytest.fixture(params=TYPICAL)
def case(request):
    return TYPICAL[request.param]


def close(got, want):
    """Equal up to the order of float32 operations, which a compiler may change."""
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# --- dispatcher ops ------------------------------------------------------------------------------


def test_opcheck(case):
    """Schemas are honest and the fake kernels agree with the real ones, whatever the strides."""
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    op = getattr(torch.ops.flowkern, case.op)
    backward = getattr(torch.ops.flowkern, case.op + "_backward")
    for dtype, layout in ((torch.float32, "contiguous"), (torch.float64, "transposed")):
        arguments = raw_arguments(case, dtype, layout)
        torch.library.opcheck(op, arguments)
        torch.library.opcheck(backward, (*cotangents(*op(*arguments)), *arguments))


def test_raw_op_refuses_what_it_cannot_read(case):
    """The dispatcher ops are public too: they check shapes, dtypes and indices themselves."""
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    op = getattr(torch.ops.flowkern, case.op)
    x, params, index, *rest = raw_arguments(case)
    for message, bad in (
        ("x: expected shape", (x[0], params, index)),
        ("params: expected shape", (x, params[0], index)),
        ("params: expected 4 rows, got 5", (x[1:], params, index)),
        ("params: expected the dtype of x", (x.double(), params, index)),
        ("x: expected float32 or float64", (x.half(), params.half(), index)),
        ("index: names 2 features, but params has 3", (x, params, index[1:])),
        ("index: expected a contiguous int64 vector", (x, params, index.int())),
        ("index: expected entries in .* got 15", (x, params, index + 10)),
        ("index: expected entries in .* got -5", (x, params, index - 10)),
        ("params: 3 transformed features, but x has 6", (x, params, None)),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*bad, *rest)


# --- compile and export --------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["index", "all"])
def test_compile_is_one_graph(case, backend, select):
    """Values and gradients under fullgraph=True, with the backend chosen inside the graph."""
    case = case if select == "index" else replace(case, width=case.features, select="all")

    def values(x, params, inverse):
        with flowkern.backend(backend):
            return case(x, params, inverse=inverse)

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend=COMPILER[backend])
    for inverse in (False, True):
        x, params = case.tensors(inverse=inverse)
        want = evaluate(values, x, params, backend=backend, inverse=inverse)
        got = evaluate(compiled, x, params, backend=backend, inverse=inverse)
        close(got, want)


def test_compile_follows_the_backend_chosen_outside(case):
    """The graph is guarded on the choice: a compiled function is not stuck with the first one."""

    def values(x, params):
        return case(x, params)

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend="eager")
    x, params = case.tensors()
    with torch.no_grad():
        with flowkern.backend("reference"):
            want = values(x, params)
            close(compiled(x, params), want)
        with pytest.raises(RuntimeError, match="cuda"), flowkern.backend("cuda"):
            compiled(x, params)
        close(compiled(x, params), want)


def test_compile_without_gradients(case, backend):
    torch.compiler.reset()
    compiled = torch.compile(case.__call__, fullgraph=True, backend="aot_eager")
    x, params = case.tensors()
    for context in (torch.no_grad, torch.inference_mode):
        with context(), flowkern.backend(backend):
            close(compiled(x, params), case(x, params))


def test_dynamic_batch_compiles_once(case, backend, on_backend):
    compiler = "aot_eager" if backend == "cpu" else "eager"
    counter = CompileCounterWithBackend(compiler)
    torch.compiler.reset()
    compiled = torch.compile(case.__call__, fullgraph=True, backend=counter)
    for batch in (5, 63, 130):
        x, params = replace(case, batch=(batch,)).tensors()
        for tensor in (x, params):
            torch._dynamo.mark_dynamic(tensor, 0)
        close(compiled(x.requires_grad_(), params), case(x, params))
    assert counter.frame_count == 1


def test_export(case, on_backend):
    class Module(torch.nn.Module):
        def forward(self, x, params):
            return case(x, params, inverse=True)

    batch = torch.export.Dim("batch", min=2)
    x, params = case.tensors()
    program = torch.export.export(Module(), (x, params), dynamic_shapes=({0: batch}, {0: batch}))
    x, params = replace(case, batch=(130,)).tensors()
    close(program.module()(x, params), case(x, params, inverse=True))


# --- torch.func ----------------------------------------------------------------------------------


def test_vmap(case, on_backend):
    """Over x, over params, over both, along any dimension, and nested."""
    x, params = replace(case, batch=(4, 7)).tensors(torch.float64)

    def check(mapped, want):
        torch.testing.assert_close(mapped, want)

    check(vmap(case)(x, params), case(x, params))
    check(vmap(case, (0, None))(x, params[0]), case(x, params[0]))
    check(vmap(case, (None, 0))(x[0], params), case(x[0], params))
    check(vmap(case, (2, 1), (0, 0))(x.permute(1, 2, 0), params.transpose(0, 1)), case(x, params))
    check(vmap(vmap(case))(x, params), case(x, params))
    check(vmap(vmap(case, (None, 0)), (0, None))(x[:, 0], params[0]), case(x[:, :1], params[0]))


def test_per_sample_gradients(case, on_backend):
    x, params = case.tensors(torch.float64)

    def log_prob(params, x):
        y, logabsdet = case(x, params)
        return logabsdet - y.square().sum()

    each = vmap(grad(log_prob))(params, x)
    params = params.requires_grad_()
    total = sum(log_prob(p, row) for p, row in zip(params, x))
    torch.testing.assert_close(each, torch.autograd.grad(total, params)[0])


def test_vmap_takes_one_index_and_refuses_several(case):
    x, params = case.tensors()
    index, op = case.selection()["index"], getattr(flowkern.ops, case.op)

    def call(index):
        return op(x, params, index=index)[0]

    got = vmap(call)(index.expand(4, -1))
    torch.testing.assert_close(got, call(index).expand(4, *x.shape))
    with pytest.raises(ValueError, match="^index: expected the same in all modules that vmap maps over"):
        vmap(call)(torch.stack((index, index.flip(0))))


# --- autograd ------------------------------------------------------------------------------------


def test_only_the_gradients_asked_for(case, backend):
    x, params = case.tensors()
    want = evaluate(case, x, params, backend=backend)
    grads = cotangents(want.y, want.logabsdet)
    for at, name in enumerate(("grad_x", "grad_params")):
        inputs = [x, params]
        inputs[at] = inputs[at].detach().requires_grad_()
        with flowkern.backend(backend):
            (got,) = torch.autograd.grad(case(*inputs), inputs[at], grads)
        assert torch.equal(got, getattr(want, name))
    with flowkern.backend(backend):
        assert not any(t.requires_grad for t in case(x, params))


def test_gradient_of_one_output_only(case, on_backend):
    """An output that takes no part in the loss has a zero cotangent."""
    x, params = (t.requires_grad_() for t in case.tensors(torch.float64))
    y, logabsdet = case(x, params)
    total = torch.autograd.grad(y.sum() + logabsdet.sum(), (x, params), retain_graph=True)
    of_y = torch.autograd.grad(y.sum(), (x, params), retain_graph=True)
    of_logabsdet = torch.autograd.grad(logabsdet.sum(), (x, params))
    for parts in zip(total, of_y, of_logabsdet):
        torch.testing.assert_close(parts[0], parts[1] + parts[2])


def test_backward_twice_and_after_a_change(case, on_backend):
    x, params = (t.requires_grad_() for t in case.tensors())
    y, logabsdet = case(x, params)
    loss = y.sum() + logabsdet.sum()
    once, twice = (torch.autograd.grad(loss, (x, params), retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, twice))
    with torch.no_grad():
        params.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_outputs_are_new_tensors(backend):
    """y is never a view of x, also where nothing is transformed, so changing it is safe."""
    with flowkern.backend(backend):
        for case in (AFFINES["empty_half"], SPLINES["empty_half"], AFFINES["additive"]):
            x, params = case.tensors()
            before = x.clone()
            case(x, params)[0].add_(1)
            assert torch.equal(x, before)


# --- shapes and layouts --------------------------------------------------------------------------


@pytest.mark.parametrize("x_batch, params_batch", [((4, 1), (3,)), ((), (5,)), ((2, 3), ()), ((0,), ())])
def test_batch_dimensions_broadcast(case, on_backend, x_batch, params_batch):
    x, _ = replace(case, batch=x_batch).tensors(torch.float64)
    _, params = replace(case, batch=params_batch).tensors(torch.float64)
    batch = torch.broadcast_shapes(x_batch, params_batch)
    y, logabsdet = case(x, params)
    assert (y.shape, logabsdet.shape) == ((*batch, case.width), batch)
    wide = x.expand(*batch, -1).contiguous(), params.expand(*batch, -1, -1).contiguous()
    torch.testing.assert_close((y, logabsdet), case(*wide))
    leaves = [t.clone().requires_grad_() for t in (x, params)]
    got = torch.autograd.grad(sum(t.sum() for t in case(*leaves)), leaves)
    leaves_wide = [t.clone().requires_grad_() for t in wide]
    want = torch.autograd.grad(sum(t.sum() for t in case(*leaves_wide)), leaves_wide)
    torch.testing.assert_close(got, tuple(w.sum_to_size(t.shape) for w, t in zip(want, leaves)))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "misaligned"])
def test_layouts_change_nothing(case, backend, layout):
    """Not a bit differs between layouts of the same x, params and incoming gradients."""
    x, params = replace(case, batch=(37,)).tensors()
    want = evaluate(case, x, params, backend=backend)
    grads = cotangents(want.y, want.logabsdet)
    other = [laid_out(t, layout) for t in (x, params)]
    grads = laid_out(grads[0], layout), laid_out(grads[1].unsqueeze(0), layout).squeeze(0)
    got = evaluate(case, *other, backend=backend, grads=grads)
    for quantity, g, w in zip(got._fields, got, want):
        assert torch.equal(g, w), quantity


def test_expanded_gradient(case, on_backend):
    """sum() hands down gradients of stride 0."""
    x, params = (t.requires_grad_() for t in case.tensors())
    y, logabsdet = case(x, params)
    ones = torch.ones_like(y), torch.ones_like(logabsdet)
    want = torch.autograd.grad((y, logabsdet), (x, params), ones, retain_graph=True)
    got = torch.autograd.grad((y.sum() + logabsdet.sum()), (x, params))
    assert all(torch.equal(*pair) for pair in zip(got, want))


def test_rows_further_apart_than_32_bits_count(case, on_backend, tmp_path):
    """Rows 2³¹ elements apart in a sparse file, of which only the pages that are touched exist."""
    far, count = 2**31, 2**31 + 4096
    for at, leaf in enumerate(case.tensors()):
        inputs = [t[:2].clone() for t in case.tensors()]
        want = case(*inputs)
        store = torch.from_file(str(tmp_path / f"{at}"), shared=True, size=count)
        inputs[at] = store.as_strided(leaf[:2].shape, (far, *leaf.stride()[1:])).copy_(leaf[:2])
        assert all(torch.equal(*pair) for pair in zip(case(*inputs), want))


def test_chunked_and_interleaved_parameters(on_backend):
    """A conditioner's flat output is read where it lies, whichever way it is packed."""
    case, x, params = AFFINES["exp"], torch.randn(7, 4), torch.randn(7, 4, 2)
    interleaved, chunked = params.flatten(1), params.mT.flatten(1)
    want = case(x, params)
    for view in (interleaved.unflatten(-1, (4, 2)), chunked.unflatten(-1, (2, 4)).mT):
        got = case(x, view)
        assert all(torch.equal(*pair) for pair in zip(got, want))


def test_index_of_any_kind(case, on_backend):
    """A list, a strided tensor, and a mask as a list."""
    x, params = case.tensors()
    index = case.selection()["index"]
    op = getattr(flowkern.ops, case.op)
    want = op(x, params, index=index, **case.options)
    strided = torch.stack((index, index), dim=-1)[:, 0]
    for same in (index.tolist(), strided):
        assert torch.equal(op(x, params, index=same, **case.options)[0], want[0])
    mask = [feature in index.tolist() for feature in range(case.width)]
    by_mask = op(x, params[:, index.argsort()], mask=mask, **case.options)
    assert torch.equal(by_mask[0], want[0])


# --- autocast ------------------------------------------------------------------------------------


def test_autocast(case, on_backend):
    """A bfloat16 conditioner output leaves a float32 x in float32, with gradients for both."""
    x, params = case.tensors()
    context = torch.randn(len(x), 8)
    linear = torch.nn.Linear(8, params[0].numel())

    with torch.autocast("cpu", torch.bfloat16):
        out = linear(context).unflatten(-1, params.shape[1:])
        y, logabsdet = case(x, out)
        (y.sum() + logabsdet.sum()).backward()
    assert out.dtype == torch.bfloat16
    assert y.dtype == logabsdet.dtype == linear.weight.grad.dtype == torch.float32
    want = case(x, out.float())
    assert torch.equal(y, want[0]) and torch.equal(logabsdet, want[1])


def test_autocast_leaves_float32_as_it_is(case, on_backend):
    x, params = case.tensors()
    want = case(x, params)
    with torch.autocast("cpu", torch.bfloat16):
        got = case(x, params)
    assert all(torch.equal(*pair) for pair in zip(got, want))

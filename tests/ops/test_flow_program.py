"""A flow's program: every backend against the reference, laws, the dispatcher, bad arguments."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from flowkern.backends import unavailable
from flowkern.ops import AffineElement, Degrees
from flowkern.ops._flow_program import (
    LU,
    Conditioned,
    ConditionerLayer,
    Permutation,
    Program,
    Scale,
    flow_program,
)
from tests.cases.flow_program import CASES, Case, autoregressive, check, coupling, drawn, evaluate

needs_kernels = pytest.mark.skipif(unavailable("cpu") is not None, reason="the CPU kernels are not built")
EVERYTHING = CASES["everything"]


def _call(case, tensors, inverse=False):
    x, context, *others = tensors["x"], tensors.get("context"), *[t for n, t in tensors.items() if " " in n]
    return flow_program(x, case.program(), others, context, inverse)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(backend, inverse, name):
    for dtype in (torch.float32, torch.float64):
        check(CASES[name], backend, dtype, inverse)


@hypothesis.given(st.integers(0, 10**6), st.booleans())
@hypothesis.settings(max_examples=40)
def test_any_program_agrees_with_the_reference(seed, inverse):
    if unavailable("cpu") is None:
        check(drawn(seed), "cpu", torch.float32, inverse)
        check(drawn(seed), "cpu", torch.float64, inverse)


def test_inverse_undoes_it_and_the_log_determinant_is_autograds(on_backend):
    case = EVERYTHING
    tensors = case.tensors(torch.float64)
    y, l = _call(case, tensors)
    x, back = _call(case, tensors | {"x": y}, inverse=True)
    torch.testing.assert_close(x, tensors["x"])
    torch.testing.assert_close(back, -l)
    jacobian = torch.autograd.functional.jacobian(lambda x: _call(case, tensors | {"x": x})[0].sum(0), tensors["x"])
    torch.testing.assert_close(jacobian.movedim(1, 0).det().abs().log(), l)


def test_base_adds_the_log_density_of_a_standard_normal(on_backend):
    case, normal = EVERYTHING, CASES["everything normal"]
    tensors = normal.tensors(torch.float64)
    y, l = _call(case, tensors)
    wanted = l + torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(-1)
    torch.testing.assert_close(_call(normal, tensors)[1], wanted)


def test_gradcheck(on_backend, inverse):
    case = Case(3, (autoregressive(3, width=4), LU(1e-3), coupling(3, width=3, context=True, joint=True)), 2, batch=2)
    tensors = {name: tensor.requires_grad_() for name, tensor in case.tensors(torch.float64).items()}

    def run(*values):
        return _call(case, dict(zip(tensors, values)), inverse)

    assert torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()), fast_mode=True)


def test_forward_mode_and_vmap_give_the_references_numbers(on_backend):
    case = EVERYTHING
    tensors = case.tensors(torch.float64)
    tangent = torch.ones_like(tensors["x"])
    run = lambda x: _call(case, tensors | {"x": x})  # noqa: E731
    (_, l), (_, dl) = torch.func.jvp(run, (tensors["x"],), (tangent,))
    grad = torch.autograd.grad(run(x := tensors["x"].clone().requires_grad_())[1].sum(), x)[0]
    torch.testing.assert_close(dl, grad.sum(-1))
    torch.testing.assert_close(
        torch.func.vmap(lambda x: _call(case, tensors | {"x": x[None].expand_as(tangent)})[1][0])(tensors["x"])[0], l[0]
    )


def test_batched_gradients_are_those_of_a_loop(on_backend):
    case = EVERYTHING
    tensors = case.tensors(torch.float64)
    x = tensors["x"].requires_grad_()
    l = _call(case, tensors)[1]
    every = torch.eye(len(l), dtype=torch.float64)[:3]
    batched = torch.autograd.grad(l, x, every, is_grads_batched=True, retain_graph=True)[0]
    for cotangent, wanted in zip(every, batched):
        torch.testing.assert_close(torch.autograd.grad(l, x, cotangent, retain_graph=True)[0], wanted)


@needs_kernels
def test_a_samples_result_depends_on_neither_batch_nor_threads():
    case = CASES["everything normal"]
    tensors = case.tensors()
    y, l = _call(case, tensors)
    few = {name: tensor[5:8] if " " not in name else tensor for name, tensor in tensors.items()}
    torch.testing.assert_close(_call(case, few), (y[5:8], l[5:8]), rtol=0, atol=0)
    before, threads = evaluate(case, tensors, "cpu"), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        after = evaluate(case, tensors, "cpu")
    finally:
        torch.set_num_threads(threads)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@needs_kernels
def test_layouts_of_inputs_and_parameters_do_not_matter():
    case = EVERYTHING
    tensors = case.tensors(torch.float64)
    strided = {name: torch.stack((tensor, tensor), -1)[..., 1] for name, tensor in tensors.items()}
    results = []
    for given in (tensors, strided):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
        y, l = _call(case, leaves)
        results.append((y, l, *torch.autograd.grad((y * y).sum() + l.sum(), list(leaves.values()))))
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    torch.testing.assert_close(*results)


def test_leading_dimensions_broadcast_with_the_contexts(on_backend):
    case = EVERYTHING
    tensors = case.tensors(torch.float64)
    flat = _call(case, tensors | {"context": tensors["context"][:1].expand(17, 2)})
    x = tensors["x"].expand(2, 17, 3)
    y, l = _call(case, tensors | {"x": x, "context": tensors["context"][0]})
    assert y.shape == (2, 17, 3) and l.shape == (2, 17)
    torch.testing.assert_close((y[1], l[1]), flat)


def test_half_precision_is_computed_in_float32(on_backend):
    case = CASES["autoregressive"]
    tensors = {name: tensor.bfloat16() for name, tensor in case.tensors().items()}
    y, l = _call(case, tensors)
    assert y.dtype == torch.bfloat16 and l.dtype == torch.float32
    wide = _call(case, {name: tensor.float() for name, tensor in tensors.items()})
    torch.testing.assert_close(l, wide[1])


@needs_kernels
def test_a_nan_reaches_no_other_sample():
    case = CASES["everything normal"]
    tensors = case.tensors()
    y, l = _call(case, tensors)
    tensors["x"][7, 1] = torch.nan
    y_nan, l_nan = _call(case, tensors)
    others = torch.arange(len(l)) != 7
    assert l_nan[7].isnan() and torch.equal(y[others], y_nan[others]) and torch.equal(l[others], l_nan[others])


def test_a_parameter_written_to_before_the_backward_is_refused():
    case = CASES["autoregressive"]
    tensors = {name: tensor.requires_grad_() for name, tensor in case.tensors().items()}
    l = _call(case, tensors)[1]
    with torch.no_grad():
        next(t for name, t in tensors.items() if "weight" in name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        l.sum().backward()


def test_one_tensor_in_two_places_has_the_sum_of_their_gradients(on_backend):
    program = Program(2, (Scale(), Scale()))
    scale, shift = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([2.0, 3.0], [0.5, 1.0]))
    x = torch.randn(4, 2, dtype=torch.float64)
    y, l = flow_program(x, program, (scale, shift, scale, shift))
    wanted = (x * scale + shift) * scale + shift
    got = torch.autograd.grad(y.sum(), (scale, shift), create_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), (scale, shift), create_graph=True))


# --- the dispatcher's op -------------------------------------------------------------------------


def _raw(case):
    tensors = case.tensors(torch.float64)
    program = case.program()
    others = [t for name, t in tensors.items() if " " in name]
    return [tensors["x"], tensors.get("context"), others, program.code, program.numbers, False]


@needs_kernels
@pytest.mark.parametrize("name", ["everything", "everything normal", "no steps", "gates"])
def test_opcheck(name):
    arguments = _raw(CASES[name])
    op, gradients = torch.ops.flowkern.flow_program, torch.ops.flowkern.flow_program_gradients
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(op, (*arguments, False), test_utils=tests)
    y, l, states, kept = op(*arguments, True)
    x, context, tensors, *program = arguments
    of_context = context is not None
    for needs in ([True] * len(tensors), [i % 2 == 0 for i in range(len(tensors))]):
        given = (y, l, x, y, states, kept, context, tensors, *program, needs, of_context)
        torch.library.opcheck(gradients, given, test_utils=tests)


@needs_kernels
@pytest.mark.parametrize(("name", "are_kept"), [("everything", True), ("many samples", False), ("lu", False)])
def test_values_of_few_samples_are_kept(name, are_kept):
    arguments = _raw(CASES[name])
    assert (torch.ops.flowkern.flow_program(*arguments, True)[3].numel() > 0) == are_kept
    assert torch.ops.flowkern.flow_program(*arguments, False)[3].numel() == 0


@needs_kernels
def test_memory_of_kept_values_is_used_again():
    arguments = _raw(CASES["everything"])
    kept = torch.ops.flowkern.flow_program(*arguments, True)[3]
    address = kept.data_ptr()
    assert torch.ops.flowkern.flow_program(*arguments, True)[3].data_ptr() != address
    del kept
    again = [torch.ops.flowkern.flow_program(*arguments, True)[3] for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in again]


@needs_kernels
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", ["everything", "gates", "activations", "many samples"])
def test_a_second_backward_gives_the_same(name, inverse):
    """It reads what the first one did, and that has not been written to."""
    case = CASES[name]
    tensors = {name: tensor.requires_grad_() for name, tensor in case.tensors(torch.float32).items()}
    y, l = _call(case, tensors, inverse)
    total = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + l.sum()
    first, second = (torch.autograd.grad(total, [*tensors.values()], retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@needs_kernels
def test_raw_op_refuses_a_code_that_does_not_fit():
    """Every number of the code, changed or cut, is either still a program or refused: never read past."""
    x, context, tensors, code, numbers, inverse = _raw(EVERYTHING)
    op = torch.ops.flowkern.flow_program
    refused = 0
    for i in range(len(code)):
        for value in (-1, 10**9, int(code[i]) + 1):
            changed = code.clone()
            changed[i] = value
            try:
                op(x, context, tensors, changed, numbers, inverse, False)
            except RuntimeError as error:
                assert ":" in str(error)  # noqa: PT017 (some codes are still programs)
                refused += 1
    assert refused > 2 * len(code)
    for changed in (code[:-1], code[:7], numbers[:0]):
        arguments = (changed, numbers) if changed.dtype == torch.int64 else (code, changed)
        with pytest.raises(RuntimeError, match="end"):
            op(x, context, tensors, *arguments, inverse, False)
    for changed, message in (
        (tensors[:-1], "tensors: expected"),
        ([*tensors, x], "tensors: expected"),
        ([t.float() for t in tensors], "the dtype of x"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(x, context, changed, code, numbers, inverse, False)
    with pytest.raises(RuntimeError, match="context: expected"):
        op(x, None, tensors, code, numbers, inverse, False)


# --- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 4)}, "x: expected shape"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, "x: expected a floating-point"),
        ({"context": None}, "context: expected 2 features"),
        ({"context": torch.zeros(2, 5)}, "context: expected shape"),
        ({"context": torch.zeros(4, 2)}, "context: its batch shape"),
        ({"tensors": ()}, "tensors: expected"),
    ],
)
def test_bad_arguments_are_named(change, message):
    case = Case(3, (coupling(3, context=True),), context=2, batch=3)
    tensors = case.tensors()
    arguments = {
        "x": tensors["x"],
        "context": tensors["context"],
        "tensors": [t for n, t in tensors.items() if " " in n],
    }
    with pytest.raises((ValueError, TypeError), match=message):
        flow_program(program=case.program(), **(arguments | change))


PLAIN = ConditionerLayer()


@pytest.mark.parametrize(
    "step, message",
    [
        (Permutation((0, 0, 1)), "order: expected each of"),
        ("nothing", "expected Conditioned, LU"),
        (Conditioned((PLAIN,), Degrees([1, 2]), AffineElement(), 2), "degrees: expected 3 features"),
        (Conditioned((PLAIN,) * 2, Degrees([1, 2, 3]), AffineElement(), 2), "layers: expected 1"),
        (Conditioned((PLAIN,), Degrees([1, 2, 3]), AffineElement(), 3), "parameters:"),
        (Conditioned((PLAIN,), Degrees([1, 2, 3]), AffineElement(), 2, outputs=(1,)), "outputs: expected"),
        (Conditioned((PLAIN,), Degrees([1, 2, 3]), AffineElement(), 2, inputs=(0,)), "inputs: expected"),
        (
            Conditioned((PLAIN._replace(activation="relu"),), Degrees([1, 2, 3]), AffineElement(), 2),
            "the last takes no",
        ),
        (
            Conditioned((PLAIN._replace(term="tanh"),), Degrees([1, 2, 3]), AffineElement(), 2),
            "tensors: missing: .*term_weight",
        ),
        (
            Conditioned((PLAIN._replace(tensors=("bias", "weight")),), Degrees([1, 2, 3]), AffineElement(), 2),
            "in this order",
        ),
    ],
)
def test_bad_steps_are_named(step, message):
    with pytest.raises(ValueError, match=message):
        Program(3, (Scale(), step))
    with pytest.raises(ValueError, match="base: expected"):
        Program(3, (), base="uniform")

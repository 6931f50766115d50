"""The neural ODE solve: backends, dispatcher, compilers, gradients three ways, bad arguments."""

import math
from dataclasses import replace

import pytest
import torch
from torchdiffeq import odeint

import flowkern
from flowkern import backends
from flowkern.backends import unavailable
from flowkern.ops import Activation, FieldLayer, TimeEmbedding, neural_ode
from flowkern.ops._activation import NAMES
from flowkern.ops._neural_ode import METHODS, native
from flowkern.ops._tableau import TABLEAUX
from tests.cases.neural_ode import CASES, Case, check, evaluate

COMPILER = {"reference": "aot_eager", "cpu": "inductor"}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(backend, name):
    for dtype in (torch.float64, torch.float32):
        check(CASES[name], backend, dtype)


@pytest.mark.parametrize("kind", NAMES)
def test_every_activation(backend, kind):
    for trace in ("exact", 1):
        check(Case(activations=(kind, kind), trace=trace, hidden=(6, 5), steps=1), backend, torch.float64)


def test_tanh_to_the_last_places(backend):
    """One Euler step of the field tanh(bias) from y = 0, at floats of every exponent: 2.25 units.

    The portable kernels have tanh from the C library, glibc's to 2.2 units; the others to 1.5.
    """
    sizes = torch.arange(0, 0x7F800000, 2999, dtype=torch.int32).view(torch.float32)
    x = torch.cat((sizes, -sizes, torch.tensor([math.inf, -math.inf, math.nan]))).unsqueeze(1)
    layers = [FieldLayer(torch.zeros(1, 1), x, "tanh"), FieldLayer(torch.ones(1, 1))]
    with flowkern.backend(backend):
        y = neural_ode(torch.zeros_like(x), layers, torch.tensor([0.0, 1.0]), method="euler").y[-1]
    want = x.double().tanh()
    unit = torch.ldexp(torch.ones_like(want), want.frexp().exponent.clamp(min=-125) - 24)
    assert y[-1].isnan() and (y[:-1].abs() <= 1).all()
    assert ((y.double() - want).abs()[:-1] <= 2.25 * unit[:-1]).all()


@pytest.mark.parametrize("batch", (15, 16, 17, 63, 1023))
def test_sizes_across_tiles(backend, batch):
    check(Case(batch=batch, steps=1, rows=True), backend, torch.float32)


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_equals_torchdiffeq(backend, method):
    """The same steps by torchdiffeq, whose rk4 is the 3/8 rule; the others by their tableaux."""
    case = replace(CASES["one sample"], batch=4, method=method, steps=3, times=(0.0, 1.0), kinetic=False)
    tensors, noise = case.tensors()
    with flowkern.backend(backend):
        got = case.solve(tensors, noise)
    if method not in ("euler", "midpoint", "heun2", "heun3", "rk4"):
        _assert_follows_tableau(got, case, tensors)
        return
    field = _augmented(case, tensors)
    y, logabsdet = odeint(
        field, (tensors["y"], torch.zeros(4, dtype=torch.float64)), torch.linspace(0, 1, 4).double(), method=method
    )
    torch.testing.assert_close(got.y[-1], y[-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.logabsdet[-1], logabsdet[-1], rtol=1e-6, atol=1e-6)


def _augmented(case, tensors):
    def field(t, state):
        value, trace = _field_and_trace(case, tensors, t, state[0])
        return value, trace

    return field


def _field_and_trace(case, tensors, t, y):
    """f and Tr ∂f/∂y by autograd's Jacobian."""

    def at(one):
        u = one
        for l, layer in enumerate(case.layers(tensors)):
            u = layer.weight @ u + layer.bias + (tensors["time"][:, 0] * t if l == 0 else 0)
            u = torch.tanh(u) if layer.activation == "tanh" else u
        return u

    jacobian = torch.func.vmap(torch.func.jacrev(at))(y)
    return torch.func.vmap(at)(y), jacobian.diagonal(dim1=1, dim2=2).sum(-1)


def _assert_follows_tableau(got, case, tensors):
    table, y, h = TABLEAUX[case.method], tensors["y"], 1 / case.steps
    logabsdet = torch.zeros(y.shape[0], dtype=torch.float64)
    for n in range(case.steps):
        k = []
        for row, c in zip(table.a, table.c):
            at = y + h * sum((a * s[0] for a, s in zip(row, k)), torch.zeros_like(y))
            k.append(_field_and_trace(case, tensors, (n + c) * h, at))
        y = y + h * sum(b * s[0] for b, s in zip(table.b, k))
        logabsdet = logabsdet + h * sum(b * s[1] for b, s in zip(table.b, k))
    torch.testing.assert_close(got.y[-1], y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.logabsdet[-1], logabsdet, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method, order", [(name, TABLEAUX[name].order) for name in METHODS])
def test_order_of_convergence(backend, method, order):
    """dy/dt = A y has y = exp(A t) y₀ and log|det| = Tr A t."""
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    want = y @ torch.linalg.matrix_exp(A).mT
    errors = []
    with flowkern.backend(backend):
        for steps in (16, 32):
            got = neural_ode(
                y, [FieldLayer(A)], torch.tensor([0.0, 1.0]).double(), method=method, steps=steps, trace="exact"
            )
            errors.append((got.y[-1] - want).abs().max())
            torch.testing.assert_close(got.logabsdet[-1], A.trace().expand(5), rtol=1e-12, atol=1e-12)
    assert abs(torch.log2(errors[0] / errors[1]).item() - order) < 0.3


def test_logabsdet_is_that_of_the_map(backend):
    """With small steps ∫ Tr is the log-determinant of y₀ ↦ y(1), by autograd."""
    case = Case(batch=3, steps=64, times=(0.0, 1.0))
    tensors, _ = case.tensors()
    with flowkern.backend(backend):
        solution = case.solve(tensors, None)
        for n in range(3):
            jacobian = torch.autograd.functional.jacobian(
                lambda y: case.solve(tensors | {"y": y.unsqueeze(0)}, None, trace=None).y[-1, 0], tensors["y"][n]
            )
            torch.testing.assert_close(
                solution.logabsdet[-1, n], torch.linalg.slogdet(jacobian)[1], rtol=1e-6, atol=1e-6
            )


def test_noise_estimates_without_bias(backend):
    """Over all Rademacher vectors the estimate is the trace and the squared norm of the Jacobian."""
    case = Case(batch=4, jacobian=True, steps=1)
    tensors, _ = case.tensors()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    with flowkern.backend(backend):
        exact = case.solve(tensors, None)
        noisy = case.solve(tensors, signs.unsqueeze(1).expand(8, 4, 3))
    # The state does not depend on the noise, so the mean of the integrals is the integral of the mean.
    torch.testing.assert_close(noisy.logabsdet, exact.logabsdet, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(noisy.jacobian, exact.jacobian, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ("exact two hidden", "noise", "jacobian exact", "checkpoints"))
def test_gradcheck(backend, name):
    case = replace(CASES[name], batch=2, hidden=(4, 3), features=2, times=(0.0, 0.7))
    tensors, noise = case.tensors()
    names = list(tensors)

    def run(*values):
        with flowkern.backend(backend):
            return tuple(v for v in case.solve(dict(zip(names, values)), noise) if v is not None)

    assert torch.autograd.gradcheck(run, [v.requires_grad_() for v in tensors.values()])


def test_adjoint_tends_to_the_discrete_gradient(backend):
    """They differ by the method's error: with the 3/8 rule 16 times less for half the steps."""
    differences = []
    for steps in (8, 16):
        case = Case(steps=steps, times=(0.0, 1.0))
        tensors, noise = case.tensors()
        discrete = evaluate(case, tensors, noise, backend)
        adjoint = evaluate(case, tensors, noise, backend, gradient="adjoint")
        differences.append(max((discrete[k] - adjoint[k]).abs().max().item() for k in discrete if k != "grad t"))
    assert differences[0] > 10 * differences[1] > 0


def test_opcheck():
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    for name in ("exact two hidden", "noise", "exact one hidden"):
        arguments = _raw(replace(CASES[name], batch=3))
        torch.library.opcheck(torch.ops.flowkern.neural_ode, arguments)
        ends, sums, kept = torch.ops.flowkern.neural_ode(*arguments)
        for adjoint in (False, True):
            given = (torch.ones_like(ends), torch.ones_like(sums), ends, kept, adjoint, *arguments)
            torch.library.opcheck(torch.ops.flowkern.neural_ode_backward, given)


def _raw(case):
    """Arguments of the dispatcher op for a case with shared bias, of two intervals of two steps."""
    tensors, noise = case.tensors()
    count = len(case.hidden) + 1
    weights = [tensors[f"weight{l}"] for l in range(count)]
    frequencies = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) if case.time == "fourier" else None
    closed = None
    if noise is None:
        closed = torch.randn(weights[1].shape if count == 3 else (weights[0].shape[0],), dtype=torch.float64)
    codes, slopes = map(list, zip(*(Activation.of(a).numbers() for a in case.activations)))
    starts, sizes = torch.tensor([[0.0, 1.0], [0.5, 0.25]], dtype=torch.float64)
    return (
        tensors["y"], starts, sizes, None, tensors["time"], frequencies, closed, noise,
        [*weights, *(tensors[f"bias{l}"] for l in range(count))], codes,
        slopes, *METHODS[case.method], 2, 1, 1.0, True, noise is not None,
    )  # fmt: skip


def test_raw_op_refuses_what_it_cannot_read():
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    good = list(_raw(replace(CASES["exact two hidden"], batch=3)))
    frequencies = torch.ones(2).double()
    shape = "has the wrong shape"
    for message, place, bad in (
        ("y: expected shape", 0, good[0][0]), ("starts: expected the dtype of y", 0, good[0].float()),
        ("starts: expected shape", 1, good[1][:, None]), ("starts: expected shape", 1, good[1][0]),
        (f"sizes: {shape}", 1, good[1][:1]), (f"sizes: {shape}", 2, good[2][:, None]),
        (f"row_bias: {shape}", 3, torch.zeros(2, 7).double()), (f"time: {shape}", 4, good[4][:3]),
        (f"time: {shape}", 4, good[4].expand(-1, 2).contiguous()), ("frequencies: need time", 4, None),
        (f"time: {shape}", 5, frequencies), (f"closed: {shape}", 6, good[6][:3]),
        ("closed: expected a contiguous", 6, good[6].mT.contiguous().mT), ("tensors: expected 6", 8, good[8][:-1]),
        (f"tensors: {shape}", 8, [good[8][1], *good[8][1:]]), ("layer 0 has no weight", 8, [None, *good[8][1:]]),
        ("tensors: expected 4", 9, [2]), ("activations: expected 0 to 7, got 8", 9, [2, 8]),
        ("slopes: expected one for each", 10, [1.0]), ("a, b, c: do not fit", 11, good[11][:-1]),
        ("a, b, c: do not fit", 13, good[13][:-1]), ("every: expected a divisor", 14, 0),
        ("every: expected a divisor", 15, 3), ("every: expected a divisor", 15, 0),
        ("jacobian: needs directions", 18, True),
    ):  # fmt: skip
        arguments = [*good[:place], bad, *good[place + 1 :]]
        if place == 4 and bad is None:
            arguments[5] = frequencies
        with pytest.raises(RuntimeError, match=message):
            torch.ops.flowkern.neural_ode(*arguments)


def test_a_field_too_deep_for_cuda_goes_to_triton(monkeypatch):
    monkeypatch.setattr(native, "KERNELS", ("triton", "cuda"))
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    monkeypatch.setattr(backends, "_environment", None)
    most = native.MOST_CUDA_LAYERS
    assert backends.resolve("cuda", native.kernels(most)) == "cuda"
    assert backends.resolve("cuda", native.kernels(most + 1)) == "triton"


def test_compile_is_one_graph(backend):
    case = Case(batch=5, steps=1, times=(0.0, 1.0), method="midpoint")
    tensors, noise = case.tensors()

    def loss(*values):
        with flowkern.backend(backend):
            solution = case.solve(dict(zip(tensors, values)), noise)
        return solution.y.square().sum() + solution.logabsdet.sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=COMPILER[backend])
    results = []
    for function in (loss, compiled):
        values = [v.clone().requires_grad_() for v in tensors.values()]
        value = function(*values)
        results.append([value, *torch.autograd.grad(value, values)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*values), value)


def test_torch_func(backend):
    """vmap and forward mode run the formulas."""
    case = CASES["one sample"]
    tensors, noise = case.tensors()

    def end(y):
        with flowkern.backend(backend):
            return case.solve(tensors | {"y": y}, noise).y[-1]

    y = tensors["y"]
    jacobian = torch.func.jacrev(end)(y)
    torch.testing.assert_close(torch.func.jacfwd(end)(y), jacobian)
    torch.testing.assert_close(torch.autograd.functional.jacobian(end, y), jacobian)
    batched = torch.func.vmap(end)(torch.stack((y, 2 * y)))
    torch.testing.assert_close(batched, torch.stack((end(y), end(2 * y))))


def test_second_derivatives(backend):
    case = Case(batch=2, features=2, hidden=(3, 2), steps=1, times=(0.0, 0.7), rows=True)
    tensors, noise = case.tensors()
    names = list(tensors)

    def run(*values, **changed):
        with flowkern.backend(backend):
            solution = case.solve(dict(zip(names, values)), noise, **changed)
        return solution.y, solution.logabsdet

    values = [v.requires_grad_() for v in tensors.values()]
    assert torch.autograd.gradgradcheck(run, values)
    with pytest.raises(RuntimeError, match="adjoint.*no second derivatives"):
        torch.autograd.grad(run(*values, gradient="adjoint")[0].sum(), values[0], create_graph=True)


# --- shapes, values, arguments ----------------------------------------------------------------------


def test_batch_shapes_and_layouts(backend):
    case = Case(batch=6, rows=True)
    tensors, _ = case.tensors()
    with flowkern.backend(backend):
        flat = case.solve(tensors, None)
        shaped = case.solve(tensors | {k: tensors[k].unflatten(0, (2, 3)) for k in ("y", "bias0")}, None)
        strided = tensors | {"y": tensors["y"].mT.contiguous().mT, "weight1": tensors["weight1"].mT.contiguous().mT}
        # torch's products of other layouts may round otherwise.
        exact = {} if backend == "reference" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(case.solve(strided, None), flat, **exact)
        one = case.solve(tensors | {"y": tensors["y"][0], "bias0": tensors["bias0"][:1].expand(2, 7)}, None)
    assert shaped.y.shape == (3, 2, 3, 3) and shaped.logabsdet.shape == (3, 2, 3)
    torch.testing.assert_close(shaped.y.flatten(1, 2), flat.y, rtol=0, atol=0)
    torch.testing.assert_close(one.y[:, 0], flat.y[:, 0])


def test_half_precision_is_a_storage_format(backend):
    case = CASES["exact two hidden"]
    tensors, _ = case.tensors(torch.float32)
    half = {k: v.bfloat16() if k == "y" else v for k, v in tensors.items()}
    with flowkern.backend(backend):
        got = case.solve(half, None)
        want = case.solve(half | {"y": half["y"].float()}, None)
    assert got.y.dtype == torch.bfloat16 and got.logabsdet.dtype == torch.float32
    torch.testing.assert_close(got.y, want.y.bfloat16())
    torch.testing.assert_close(got.logabsdet, want.logabsdet, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changed, message",
    (
        (dict(y=torch.ones(3, 0)), "y: expected at least one"),
        (dict(y="y"), "y: expected a tensor"),
        (dict(y=torch.ones(3, 2, dtype=torch.int64)), "y: expected a floating-point"),
        (dict(t=[0.0, 1.0]), "t: expected"),
        (dict(t=torch.zeros(0)), "t: expected"),
        (dict(layers=[]), "layers: expected at least one"),
        (dict(layers=[torch.ones(2, 2)]), r"layers\[0\]: expected a FieldLayer"),
        (dict(layers=[FieldLayer(torch.ones(2, 3))]), r"layers\[0\].weight: expected shape \(2, 2\)"),
        (dict(layers=[FieldLayer(torch.ones(2, 2), torch.ones(3))]), r"layers\[0\].bias: expected shape"),
        (dict(layers=[FieldLayer(torch.ones(2, 2), torch.ones(4, 2))]), r"layers\[0\].bias: batch shape"),
        (dict(layers=[FieldLayer(torch.ones(2, 2), None, "tanh")]), "layers: the last"),
        (
            dict(layers=[FieldLayer(torch.ones(2, 2), None, "sine"), FieldLayer(torch.ones(2, 2))]),
            "activation: expected",
        ),
        (dict(method="rk45"), "method: expected one of euler"),
        (dict(steps=0), "steps: expected"),
        (dict(steps=4, checkpoint=3), "checkpoint: expected a divisor"),
        (dict(gradient="none"), "gradient: expected"),
        (dict(on_failure="ignore"), "on_failure: expected None, 'raise' or 'warn'"),
        (dict(trace="hutchinson"), "trace: expected"),
        (dict(trace=torch.ones(3, 5)), "trace: expected"),
        (dict(jacobian=True), "jacobian: needs a trace"),
        (dict(method=["rk4"]), r"method: expected one of .*, got \['rk4'\]"),
        (dict(layers=None), "layers: expected a sequence of FieldLayer, got NoneType"),
        (dict(layers=FieldLayer(torch.ones(2, 2))), "layers: expected a sequence of FieldLayer, got FieldLayer"),
        (dict(time=torch.ones(2, 1)), "time: expected a TimeEmbedding or None, got Tensor"),
        (dict(t=torch.tensor([0.0, math.nan])), "t: expected times that rise or fall throughout, and finite"),
        (dict(t=torch.tensor([0.0, math.inf])), "t: expected times that rise or fall throughout, and finite"),
        (dict(t=torch.tensor([0.0, 1.0, 0.5])), "t: expected times that rise or fall throughout, and finite"),
        (dict(layers=[FieldLayer(None)]), r"layers\[0\].weight: expected a tensor, got NoneType"),
        (dict(layers=[FieldLayer(torch.ones(2, 2), 3)]), r"layers\[0\].bias: expected a tensor, got int"),
        (
            dict(layers=[FieldLayer(torch.ones(2, 2), None, ["relu"]), FieldLayer(torch.ones(2, 2))]),
            "activation: expected",
        ),
        (dict(time=TimeEmbedding(torch.ones(2, 2), 3)), "time.frequencies: expected a tensor, got int"),
        (dict(steps=True), "steps: expected a positive integer, got True"),
        (dict(time=TimeEmbedding(torch.ones(3, 1))), "time.weight: expected shape"),
        (dict(time=TimeEmbedding(torch.ones(2, 5), torch.ones(2))), "time.weight: expected shape"),
        (dict(time=TimeEmbedding(torch.ones(2, 4), torch.ones(2, 1))), "time.frequencies: expected shape"),
    ),
)
def test_bad_arguments(changed, message):
    given = dict(y=torch.ones(3, 2), layers=[FieldLayer(torch.ones(2, 2))], t=torch.tensor([0.0, 1.0])) | changed
    with pytest.raises((TypeError, ValueError), match=message):
        neural_ode(given.pop("y"), given.pop("layers"), given.pop("t"), **given)

"""The probability path: its reference, published formulas, the dispatcher, errors."""

import math

import pytest
import torch
from torch.func import grad, vmap

import flowkern
from flowkern.backends import unavailable
from flowkern.ops import probability_path
from flowkern.ops._probability_path import PATHS
from tests.cases.probability_path import CASES, SEED, Case, check, evaluate
from tests.cases.tensors import laid_out

# The reference as it is: a graph of the 150 integer operations of each stream, twice.
COMPILER = {"reference": "eager", "cpu": "aot_eager"}


@pytest.fixture(params=PATHS)
def path(request):
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(backend, name):
    for dtype in (torch.float64, torch.float32):
        check(CASES[name], backend, dtype)


# --- formulas ------------------------------------------------------------------------------------


def torchcfm(path, x0, x1, t, sigma, noise):
    """x_t and u_t by the expressions of torchcfm 1.0.7 (Tong et al., table 1), written out again."""
    line = t * x1 + (1 - t) * x0
    if path == "conditional":
        return line + sigma * noise, x1 - x0
    if path == "target":
        x_t = t * x1 + (1 - (1 - sigma) * t) * noise
        return x_t, (x1 - (1 - sigma) * x_t) / (1 - (1 - sigma) * t)
    if path == "variance_preserving":
        angle = math.pi / 2 * t
        velocity = math.pi / 2 * (angle.cos() * x1 - angle.sin() * x0)
        return angle.cos() * x0 + angle.sin() * x1 + sigma * noise, velocity
    x_t = line + sigma * (t * (1 - t)).sqrt() * noise
    return x_t, (1 - 2 * t) / (2 * t * (1 - t) + 1e-8) * (x_t - line) + x1 - x0


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0, 3])
def test_equalstorchcfm(on_backend, path, sigma):
    x0, x1, t, noise = Case(batch=500, given=True).tensors(torch.float64)
    got = probability_path(x0, x1, t, path=path, sigma=sigma, noise=noise)
    assert got[0] is t
    want = torchcfm(path, x0, x1, t.unsqueeze(-1), sigma, noise)
    torch.testing.assert_close(got[1:], want, rtol=1e-10, atol=1e-10)


def test_velocity_is_the_derivative(on_backend, path):
    """u_t = dx_t/dt for fixed noise, by differences."""
    x0, x1, t, noise = Case(batch=50, given=True).tensors(torch.float64)
    t, h = 0.05 + 0.9 * t, 1e-6
    _, _, u_t = probability_path(x0, x1, t, path=path, sigma=0.4, noise=noise)
    before, after = (probability_path(x0, x1, t + step, path=path, sigma=0.4, noise=noise)[1] for step in (-h, h))
    torch.testing.assert_close((after - before) / (2 * h), u_t, rtol=1e-6, atol=1e-6)


def test_ends(on_backend, path):
    """Without noise the path leads from x0 (target: from the noise) to x1, and u_t is finite there."""
    x0, x1, _, noise = Case(batch=9, given=True).tensors(torch.float64)
    sigma = 0.5 if path == "schroedinger_bridge" else 0.0
    for t, end in ((0.0, noise if path == "target" else x0), (1.0, x1)):
        times = torch.full((9,), t, dtype=torch.float64)
        _, x_t, u_t = probability_path(x0, x1, times, path=path, sigma=sigma, noise=noise)
        torch.testing.assert_close(x_t, end, rtol=1e-15, atol=1e-15)
        assert u_t.isfinite().all()


def test_bridge_without_noise_at_the_ends(on_backend):
    """It is a straight line there, and so is its derivative by t."""
    x0, x1 = torch.randn(2, 2, 3)
    t = torch.tensor([0.0, 1.0], requires_grad=True)
    _, x_t, u_t = probability_path(x0, x1, t, path="schroedinger_bridge", seed=1)
    (grad,) = torch.autograd.grad(x_t.sum() + u_t.sum(), t)
    torch.testing.assert_close(grad, (x1 - x0).sum(1))


def test_variance_preserving_beyond_the_ends(on_backend):
    """Trigonometric functions of any t."""
    x0, x1 = torch.randn(2, 50, 3, dtype=torch.float64)
    t = torch.linspace(-9, 9, 50, dtype=torch.float64)
    got = probability_path(x0, x1, t, path="variance_preserving")[1:]
    want = torchcfm("variance_preserving", x0, x1, t.unsqueeze(-1), 0.0, torch.zeros_like(x0))
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_gradcheck(on_backend, path, given):
    """First and second derivatives, and forward mode, by differences."""
    x0, x1, t, noise = Case(batch=3, shape=(2,), given=True).tensors(torch.float64)
    inputs = [v.requires_grad_() for v in (x0, x1, 0.1 + 0.8 * t)]
    noise = noise if given else None

    def function(x0, x1, t):
        return probability_path(x0, x1, t, path=path, sigma=0.5, noise=noise, seed=1)[1:]

    if path == "target":  # x0 is not looked at
        inputs, whole = inputs[1:], function
        function = lambda x1, t: whole(None, x1, t)  # noqa: E731
    torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, inputs)


def test_drawn_times_take_no_gradient(on_backend):
    x0, x1 = (v.requires_grad_() for v in torch.randn(2, 9, 3))
    t, x_t, u_t = probability_path(x0, x1, sigma=0.1)
    assert not t.requires_grad and x_t.requires_grad and u_t.requires_grad
    grad_x0, grad_x1 = torch.autograd.grad(x_t.sum(), (x0, x1))
    torch.testing.assert_close(grad_x1, t.unsqueeze(-1).expand(9, 3))
    torch.testing.assert_close(grad_x0 + grad_x1, torch.ones(9, 3))


# --- dispatcher, compilers, torch.func -----------------------------------------------------------


def _raw(case, dtype=torch.float64):
    x0, x1, t, noise = case.tensors(dtype)
    return x0, x1, t, noise, torch.tensor(SEED), PATHS[case.path], case.sigma


@pytest.mark.parametrize("name", ["conditional", "schroedinger_bridge given"])
def test_opcheck(name):
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    op = torch.ops.flowkern.probability_path
    x0, x1, t, *rest = arguments = _raw(CASES[name])
    torch.library.opcheck(op, arguments)
    t = torch.rand(len(x0), dtype=x0.dtype) if t is None else t
    for of_t in (False, True):
        backward = torch.ops.flowkern.probability_path_backward
        torch.library.opcheck(backward, (x0, x1, of_t, x0, x1, t, *rest))


def test_raw_op_refuses_what_it_cannot_read():
    """The dispatcher op is public too: it checks shapes, dtypes and numbers itself."""
    if unavailable("cpu") is not None:
        pytest.skip("the CPU kernels are not built")
    x0, x1, t, noise, seed, kind, sigma = _raw(CASES["conditional given"])
    for message, bad in (
        ("x0: expected shape", (x0[0], x1, t, noise, seed, kind)),
        ("x1: expected shape", (x0, x1[1:], t, noise, seed, kind)),
        ("x0: expected shape", (x0[:, :0], x1[:, :0], t, noise[:, :0], seed, kind)),
        ("x1: expected contiguous", (x0, x1.float(), t, noise, seed, kind)),
        ("x0: expected float32 or float64", (x0.half(), x1.half(), t.half(), noise.half(), seed, kind)),
        ("x1: expected contiguous", (x0, x1.mT.contiguous().mT, t, noise, seed, kind)),
        ("t: expected shape", (x0, x1, t[1:], noise, seed, kind)),
        ("t: expected contiguous", (x0, x1, t.float(), noise, seed, kind)),
        ("noise: expected shape", (x0, x1, t, noise[:, 1:], seed, kind)),
        ("seed: expected an int64", (x0, x1, t, noise, seed.int(), kind)),
        ("seed: expected an int64", (x0, x1, t, noise, seed.expand(2), kind)),
        ("path: expected 0 to 3, got 4", (x0, x1, t, noise, seed, 4)),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.flowkern.probability_path(*bad, sigma)


def test_compile_is_one_graph(backend):
    """Values and gradients under fullgraph=True, also with a seed that the graph draws."""

    def function(x0, x1, seed=None):
        with flowkern.backend(backend):
            return probability_path(x0, x1, path="schroedinger_bridge", sigma=0.5, seed=seed)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=COMPILER[backend])
    x0, x1 = (v.requires_grad_() for v in torch.randn(2, 20, 3))
    seed = torch.tensor(3)
    got, want = compiled(x0, x1, seed), function(x0, x1, seed)
    torch.testing.assert_close(got, want)
    results = [torch.autograd.grad(r[1].sum() + r[2].square().sum(), (x0, x1)) for r in (got, want)]
    torch.testing.assert_close(*results)
    first, second = compiled(x0, x1)[0], compiled(x0, x1)[0]
    assert not torch.equal(first, second)


def test_vmap(on_backend, path):
    """Samples join the rows; per-sample gradients."""
    x0, x1, t, noise = Case(batch=12, given=True).tensors(torch.float64)

    def function(x0, x1, t, noise):
        return probability_path(x0, x1, t, path=path, sigma=0.5, noise=noise)[1:]

    want = function(x0, x1, t, noise)
    split = [v.unflatten(0, (3, 4)) for v in (x0, x1, t, noise)]
    got = vmap(function)(*split)
    torch.testing.assert_close([g.flatten(0, 1) for g in got], list(want))
    got = vmap(function, (0, None, 0, None))(split[0], x1[:4], split[2], noise[:4])
    each = function(x0, x1[:4].repeat(3, 1), t, noise[:4].repeat(3, 1))
    torch.testing.assert_close([g.flatten(0, 1) for g in got], list(each))

    def loss(x1, t):
        x_t, u_t = function(x0[:4], x1, t, noise[:4])
        return (x_t * u_t).sum()

    got = vmap(grad(loss, (0, 1)))(split[1], split[2])
    for n in range(3):
        want = grad(loss, (0, 1))(split[1][n], split[2][n])
        torch.testing.assert_close([g[n] for g in got], list(want))


def test_vmap_draws_for_each_sample(on_backend):
    """With a seed for each; those of PyTorch's generator are different if vmap is to have them so."""
    x1, seeds = torch.zeros(3, 40, 2), torch.arange(3)
    each = vmap(lambda s: probability_path(None, x1[0], path="target", seed=s)[:2])(seeds)
    for n in range(3):
        want = probability_path(None, x1[0], path="target", seed=seeds[n])
        assert torch.equal(each[0][n], want[0]) and torch.equal(each[1][n], want[1])
    drawn, _, _ = vmap(lambda x1: probability_path(None, x1, path="target"), randomness="different")(x1)
    assert len(drawn.unique()) == 120
    drawn, _, _ = vmap(lambda x1: probability_path(None, x1, path="target"), randomness="same")(x1)
    assert len(drawn.unique()) == 40


@pytest.mark.parametrize("given", [(), ("t",), ("t", "noise"), ("noise",)])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_vmap_with_one_seed_is_the_loop(on_backend, path, sigma, given):
    """Each element has the numbers of that seed."""
    x0, x1, noise = torch.randn(3, 4, 5, 2)
    every = {"t": torch.rand(4, 5), "noise": noise}
    every = {name: every[name] for name in given}

    def call(x0, x1, every):
        return probability_path(x0, x1, path=path, sigma=sigma, seed=7, **every)

    want = [call(x0[n], x1[n], {name: value[n] for name, value in every.items()}) for n in range(4)]
    for got, parts in zip(vmap(call)(x0, x1, every), zip(*want), strict=True):
        assert torch.equal(got, torch.stack(parts))


# --- dtypes, layouts, errors ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(on_backend, path, dtype):
    """Computed in float32 and rounded once; gradients have the dtype of their input."""
    case = Case(path, given=True)
    x0, x1, t, noise = case.tensors(dtype)
    grads = x0.roll(1, 0), x0.roll(2, 0)
    got = evaluate(case, x0, x1, t, noise, grads, "reference")
    want = case(x0.float(), x1.float(), t.float(), noise.float())
    for g, w in zip(got[1:3], want[1:]):
        assert g.dtype == dtype
        torch.testing.assert_close(g, w.to(dtype))
    assert all(g.dtype == dtype for g in got)
    t, x_t, _ = probability_path(x0, x1.float(), path=path, seed=1)
    assert (t.dtype, x_t.dtype) == (torch.float32, torch.promote_types(torch.float32, x0.dtype))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "misaligned", "expanded"])
def test_layouts(on_backend, layout):
    """Not a bit differs between layouts of the same tensors."""
    case = Case("schroedinger_bridge", batch=37, given=True)
    x0, x1, t, noise = case.tensors()
    other = [laid_out(v, layout) for v in (x0, x1, noise)]
    x0, x1, noise = (v.clone(memory_format=torch.contiguous_format) for v in other)
    times = laid_out(t.unsqueeze(0), layout).squeeze(0)
    want, got = case(x0, x1, times.clone(), noise), case(*other[:2], times, other[2])
    assert all(map(torch.equal, got, want))


X, T = torch.zeros(4, 3), torch.zeros(4)
BAD = [
    (TypeError, "x0: .*NoneType", dict(x0=None)),
    (TypeError, "x1: .*list", dict(x1=[1.0])),
    (TypeError, "x1: .*torch.int64", dict(x1=X.long())),
    (TypeError, "x0: .*layout", dict(x0=X.to_sparse())),
    (ValueError, "x1: .*features", dict(x1=T[0])),
    (ValueError, "x0: expected shape .*4,.* got .*4, 3", dict(x1=T)),
    (ValueError, "x1: .*features", dict(x1=X[:, :0])),
    (ValueError, r"x0: .*\(4, 3\), got \(4, 2\)", dict(x0=X[:, :2])),
    (ValueError, "x0: .*device", dict(x0=X.to("meta"))),
    (ValueError, r"t: .*\(4,\), got \(3,\)", dict(t=T[:3])),
    (ValueError, r"t: .*\(4,\), got \(\)", dict(t=T[0])),
    (TypeError, "t: .*float", dict(t=0.5)),
    (ValueError, r"noise: .*\(4, 3\)", dict(noise=T)),
    (ValueError, "noise: .*gradient", dict(noise=X.clone().requires_grad_())),
    (ValueError, "path: .*conditional.*'line'", dict(path="line")),
    (ValueError, "path: ", dict(path=None)),
    (ValueError, "sigma: .*-1", dict(sigma=-1)),
    (ValueError, "sigma: .*nan", dict(sigma=math.nan)),
    (ValueError, "sigma: .*inf", dict(sigma=math.inf)),
    (ValueError, "sigma: ", dict(sigma=X)),
    (ValueError, "seed: .*int64", dict(seed=2**63)),
    (ValueError, "seed: .*1.5", dict(seed=1.5)),
    (ValueError, "seed: .*int32", dict(seed=torch.tensor(1, dtype=torch.int32))),
    (ValueError, r"seed: .*\(2,\)", dict(seed=torch.tensor([1, 2]))),
    (ValueError, "seed: .*meta", dict(seed=torch.zeros((), dtype=torch.int64, device="meta"))),
]


@pytest.mark.parametrize("error, message, arguments", BAD)
def test_bad_input(error, message, arguments):
    with pytest.raises(error, match="^" + message):
        probability_path(**{"x0": X, "x1": X, **arguments})

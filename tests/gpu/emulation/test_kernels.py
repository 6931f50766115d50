"""The CUDA kernels, emulated on the CPU: equal to the reference, whatever the order of threads."""

import itertools
from dataclasses import replace

import pytest
import torch

import flowkern
from flowkern.ops import KnotMap
from flowkern.ops._masked_autoregressive.conditioner import masks
from flowkern.ops._neural_ode import native
from tests import options
from tests.cases import coupling
from tests.cases import masked_autoregressive as masked_autoregressive_cases
from tests.cases import neural_ode as neural_ode_cases
from tests.cases import probability_path as probability_path_cases
from tests.cases import runge_kutta_stage as runge_kutta_stage_cases
from tests.cases.coupling import AFFINES, SPLINES
from tests.gpu.emulation import build, device

CASES = {
    **{f"affine-{name}": case for name, case in AFFINES.items()},
    **{f"spline-{name}": case for name, case in SPLINES.items()},
}
# Sizes about the edges of warps, blocks, segments (512 elements) and stages.
EDGES = {
    "spline-k4": replace(SPLINES["k8"], bins=4),
    "spline-rows-257": replace(SPLINES["k8"], batch=(257,)),
    "spline-k33-rows-257": replace(SPLINES["k33"], batch=(257,)),
    "spline-k10-circular": replace(SPLINES["circular"], bins=10, batch=(29,)),
    "spline-k16-none": replace(SPLINES["none"], bins=16, batch=(29,)),
    "spline-softclip-k4": replace(SPLINES["softclip"], bins=4, batch=(29,)),
    "spline-softclip-k16": replace(SPLINES["softclip"], bins=16, batch=(29,)),
    "spline-softclip-k10": replace(SPLINES["softclip"], bins=10),
    "spline-softclip-k33": replace(SPLINES["softclip"], bins=33, batch=(29,)),
    "spline-wide": replace(SPLINES["k8"], batch=(2,), width=600, features=600),
    "spline-wide-k3": replace(SPLINES["k3"], batch=(3,), width=1201, features=600, select="mask"),
    "spline-k256": replace(SPLINES["softclip"], bins=256, batch=(3,)),
    # Parameters that do not go through shared memory, so that fewer barriers hide a missing one.
    "spline-k256-wide": replace(SPLINES["softclip"], bins=256, batch=(1,), width=293, features=289, select="index"),
    "affine-rows-257": replace(AFFINES["exp"], batch=(257,)),
    "affine-wide": replace(AFFINES["exp"], batch=(3,), width=1201, features=600, select="index"),
    "affine-one-feature": replace(AFFINES["exp"], batch=(257,), width=1, features=1),
}
PATHS = {
    **{f"path-{name}": case for name, case in probability_path_cases.CASES.items()},
    # More blocks than one, of 512 elements each.
    "path-rows-257": probability_path_cases.Case("target", batch=257, shape=(3,)),
}
STAGES = {
    **{f"stage-{name}": case for name, case in runge_kutta_stage_cases.CASES.items()},
    # More blocks than one, of 512 elements or of some rows each.
    "stage-rows-257": runge_kutta_stage_cases.Case((257, 3), 3, by_row=True),
    "stage-rows-1023": runge_kutta_stage_cases.Case((1023, 1), 2),
}
_SMALLER = {
    "wide": {"hidden": (33, 66), "method": "euler"},
    "two directions": {"hidden": (33, 5)},
    "exact three hidden": {"hidden": (9, 17, 5)},
}
_ONE_STEP = {"method": "euler", "steps": 1, "times": (0.0, 0.3), "time": None}
_Solve = neural_ode_cases.Case
SOLVES = {
    # Tiles of four samples, the last of which is not full.
    **{
        f"ode-{name}": replace(case, batch=min(case.batch, 9), **_SMALLER.get(name, {}))
        for name, case in neural_ode_cases.CASES.items()
    },
    # Tiles of 8, 16 and 32; of 16 there is no room for the second in float64.
    "ode-rows-1030": _Solve(2, (5, 3), ("elu", "silu"), 1030, kinetic=True, rows=True, **_ONE_STEP),
    "ode-rows-2050": _Solve(1, (330,), ("tanh",), 2050, **_ONE_STEP),
    "ode-rows-4101": _Solve(1, (64,), ("tanh",), 4101, **_ONE_STEP),
    # Weights that stay in main memory, and tiles.
    "ode-streamed": _Solve(1, (180, 180), ("tanh", "silu"), 5, **(_ONE_STEP | {"method": "midpoint"})),
    "ode-workspace": _Solve(1, (2500,), ("tanh",), 5, **_ONE_STEP),
}
MASKED = {
    **{f"masked-{name}": case for name, case in masked_autoregressive_cases.CASES.items()},
    # Tiles of 16 and 8 samples and in main memory, by direction and precision.
    "masked-large-tiles": masked_autoregressive_cases.Case("large tiles", 2, (800,), batch=33),
    # More layers than are packed at a time.
    "masked-many-layers": masked_autoregressive_cases.Case("many layers", 3, (4,) * 11, batch=3),
}
pytestmark = pytest.mark.timeout(900)  # the first test that runs builds the library


@pytest.fixture(autouse=True)
def emulation():
    with device.emulated():
        yield


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*CASES, *EDGES])
def test_agrees_with_the_reference(name, dtype):
    for inverse in (False, True):
        coupling.check((CASES | EDGES)[name], "cpu", dtype, inverse=inverse)


@pytest.mark.parametrize("name", ["spline-k8", "spline-softclip", "affine-tanh"])
def test_gradients_are_finite_wherever_they_fit(name):
    for inverse in (False, True):
        coupling.check_gradients_fit(CASES[name], "cpu", inverse)


@pytest.mark.parametrize("op", options.SPACES)
def test_many_pairs_of_options_agree_with_the_reference(op):
    """The first choices, which have most pairs."""
    space = options.smaller(options.SPACES[op], 17)
    for choice in itertools.islice(options.pairs(space), 8):
        options.call(space, choice).check("cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_bound_that_is_none_gives_nan(bad):
    x, params = torch.zeros(5, 3), torch.zeros(5, 2, 23)
    index, bound = torch.tensor([2, 0]), torch.tensor([1.0, bad])
    op = torch.ops.flowkern.rational_quadratic_spline
    for inverse in (False, True):
        y, logabsdet = op(x, params, index, bound, inverse, 0, 0.0, 1.0, 0.0, 1.0, *KnotMap().numbers())
        assert torch.equal(y.isnan(), torch.tensor([[True, False, False]]).expand(5, 3))
        assert logabsdet.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PATHS)
def test_path_agrees_with_the_reference(name, dtype):
    probability_path_cases.check(PATHS[name], "cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stages_agree_with_the_reference(dtype):
    for case in STAGES.values():
        runge_kutta_stage_cases.check(case, "cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SOLVES)
def test_solve_agrees_with_the_reference(name, dtype):
    neural_ode_cases.check(SOLVES[name], "cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MASKED)
def test_masked_agrees_with_the_reference(name, dtype):
    for inverse in (False, True):
        masked_autoregressive_cases.check(MASKED[name], "cpu", dtype, inverse=inverse)


def _evaluate_masked(name, dtype, inverse, batch, change=lambda x, tensors: None):
    """All quantities of a case with so many rows at the most, whose tensors have been changed."""
    case = replace(MASKED[name], batch=min(MASKED[name].batch, batch))
    x, tensors = case.tensors(dtype)
    change(x, tensors)
    result = masked_autoregressive_cases.evaluate(case, x, tensors, backend="cpu", inverse=inverse)
    return [value for _, value in masked_autoregressive_cases.flat(result)]


def test_every_kernel_runs():
    """All instances of all kernels, by the cases of the tests above."""
    for case in (CASES | EDGES).values():
        for dtype in (torch.float64, torch.float32):
            for inverse in (False, True):
                short = replace(case, batch=case.batch and (min(case.batch[0], 1),))
                x, params = short.tensors(dtype, inverse=inverse)
                coupling.evaluate(short, x, params, backend="cpu", inverse=inverse)
    for case in probability_path_cases.CASES.values():
        for dtype in (torch.float64, torch.float32):
            short = replace(case, batch=min(case.batch, 1))
            x0, x1, *given = short.tensors(dtype)
            probability_path_cases.evaluate(short, x0, x1, *given, (x0, x1), "cpu")
    for dtype in (torch.float64, torch.float32):
        test_stages_agree_with_the_reference(dtype)
        test_solve_agrees_with_the_reference("ode-one sample", dtype)
    for name in ("masked-exp", "masked-k8", "masked-k4_softclip"):
        for dtype in (torch.float64, torch.float32):
            for inverse in (False, True):
                _evaluate_masked(name, dtype, inverse, 1)
    assert device.launched() == device.kernels() != set()
    assert {source.parent.name for source in build.kernels()[:-1]} == {*device.ENTRIES.values()}


@pytest.mark.parametrize("name", [name for name in EDGES if "wide" in name or "257" in name])
def test_same_bits_in_every_order(name):
    """Threads run forward, reversed and at random; blocks work on one or on several segments."""
    case = EDGES[name]
    x, params = case.tensors()

    def run(**options):
        with device.configured(**options):
            return coupling.evaluate(case, x, params, backend="cpu")

    first = run()
    orders = [{"schedule": device.REVERSED}, {"most_blocks": 2}]
    orders += [{"schedule": device.RANDOM, "seed": seed} for seed in (1, 2)]
    for options in orders:
        assert all(map(torch.equal, first, run(**options))), options


def test_path_gives_the_same_bits_in_every_order():
    """Among them its random numbers, however many blocks work on them."""
    x0, x1, *_ = PATHS["path-rows-257"].tensors()
    results = []
    for options in ({}, {"schedule": device.REVERSED}, {"most_blocks": 1}):
        with device.configured(**options), flowkern.backend("cpu"):
            results.append(PATHS["path-rows-257"](x0, x1, None, None))
    assert all(all(map(torch.equal, results[0], other)) for other in results[1:])


@pytest.mark.parametrize("name", ["stage-rows-257", "stage-rows-1023", "stage-(2, 1100) by row"])
def test_stages_give_the_same_bits_in_every_order(name):
    case = STAGES[name]
    inputs = case.tensors(torch.float32)
    results = []
    for options in ({}, {"schedule": device.REVERSED}, {"schedule": device.RANDOM}, {"most_blocks": 1}):
        with device.configured(**options):
            results.append(runge_kutta_stage_cases.evaluate(case, *inputs, "cpu"))
    assert all(all(map(torch.equal, results[0], other)) for other in results[1:])


@pytest.mark.parametrize("name", ["ode-checkpoints", "ode-noise", "ode-adjoint noise"])
def test_solve_gives_the_same_bits_in_every_order(name):
    case = replace(SOLVES[name], batch=5)
    tensors, noise = case.tensors(torch.float32)
    results = []
    for options in ({}, {"schedule": device.REVERSED}, {"schedule": device.RANDOM}):
        with device.configured(**options):
            results.append(neural_ode_cases.evaluate(case, tensors, noise, "cpu"))
    with torch.no_grad(), device.configured(most_blocks=1), flowkern.backend("cpu"):
        assert torch.equal(case.solve(tensors, noise).y, results[0]["y"])
    for name, value in results[0].items():
        assert all(torch.equal(value, other[name]) for other in results[1:]), name


def test_a_path_does_not_depend_on_the_other_samples():
    """Nor on the size of the tile: 8 samples, or 4."""
    tensors, noise = SOLVES["ode-rows-1030"].tensors(torch.float32)
    few = tensors | {name: tensors[name][:6] for name in ("y", "bias0")}
    with torch.no_grad(), flowkern.backend("cpu"):
        both = [SOLVES["ode-rows-1030"].solve(t, noise).y for t in (tensors, few)]
    assert torch.equal(both[0][:, :6], both[1])


def test_solve_refuses_more_layers_than_a_kernel_takes():
    """Where the kernels' table ends is said on both sides: see tests/ops/test_neural_ode.py."""
    for layers in (native.MOST_CUDA_LAYERS, native.MOST_CUDA_LAYERS + 1):
        hidden = (2,) * (layers - 1)
        case = replace(SOLVES["ode-one sample"], hidden=hidden, activations=("tanh",) * len(hidden), trace=None)
        if layers == native.MOST_CUDA_LAYERS:
            neural_ode_cases.check(case, "cpu", torch.float64)
            continue
        with pytest.raises(RuntimeError, match="layers: at most 24 on CUDA, got 25"):
            neural_ode_cases.check(case, "cpu", torch.float64)


@pytest.mark.parametrize("name", MASKED)
def test_masked_gives_the_same_bits_in_every_order(name):
    orders = [{"schedule": device.REVERSED}, {"most_blocks": 1}, {"schedule": device.RANDOM}]
    for inverse in (False, True):
        first = _evaluate_masked(name, torch.float32, inverse, 33 if "rows" in name else 3)
        for options in orders:
            with device.configured(**options):
                again = _evaluate_masked(name, torch.float32, inverse, 33 if "rows" in name else 3)
            assert all(map(torch.equal, first, again)), (inverse, options)


def test_masked_weights_are_not_read_and_nan_stays_in_its_row():
    case = MASKED["masked-everything"]
    ranks = case.degrees().on("cpu")[2]

    def spoil_weights(x, tensors):
        for weight, read in zip(tensors[::5], masks(case.features, ranks, tensors[::5])):
            weight.masked_fill_(~read, torch.nan)

    def spoil_row(x, tensors):
        x[2, 1] = torch.nan

    others = torch.arange(5) != 2
    for inverse in (False, True):
        arguments = ("masked-everything", torch.float64, inverse, 5)
        want = _evaluate_masked(*arguments)
        assert all(map(torch.equal, want, _evaluate_masked(*arguments, spoil_weights)))
        y, logabsdet, grad_x, *_ = _evaluate_masked(*arguments, spoil_row)
        assert y[2].isnan().any() and logabsdet[2].isnan()
        assert all(torch.equal(a[others], b[others]) for a, b in zip((y, logabsdet, grad_x), want))


def test_masked_without_a_tape():
    """The gradient of x alone is the same, and the tape has no rows."""
    for inverse in (False, True):
        x, *rest = masked_autoregressive_cases.raw_arguments(MASKED["masked-everything"], inverse=inverse)
        y, logabsdet = device.OPS["masked_autoregressive"](x, *rest)
        backward = device.OPS["masked_autoregressive_backward"]
        grads, tapes = zip(*(backward(x, logabsdet, x, y, tape, *rest) for tape in (False, True)))
        assert torch.equal(*grads) and len(tapes[0]) == 0 and len(tapes[1]) > 0


def test_masked_order_out_of_range():
    """Nobody reads or writes beyond a tensor, where a unit of another number would be."""
    case = masked_autoregressive_cases.Case("one unit", 1, (1,), batch=3)
    for inverse in (False, True):
        x, tensors, order, ends, *rest = masked_autoregressive_cases.raw_arguments(case, inverse=inverse)
        want = device.OPS["masked_autoregressive"](x, tensors, order, ends, *rest)
        for step in (9, -9):
            got = device.OPS["masked_autoregressive"](x, tensors, order + step, ends, *rest)
            assert all(map(torch.equal, got, want))
            device.OPS["masked_autoregressive"](x, tensors, order, ends + step, *rest)


@pytest.mark.parametrize("op", ["affine_coupling", "rational_quadratic_spline"])
def test_index_out_of_range(op):
    """The log-det of such a row is NaN, and all its other features are right."""
    case = coupling.TYPICAL[op]
    x, params = case.tensors()
    index = torch.tensor([3, 6, -1])
    kernel, arguments = device.OPS[op], _arguments(op)
    y, logabsdet = kernel(x, params, index, *arguments)
    assert logabsdet.isnan().all()
    expected, _ = kernel(x, params[:, :1].contiguous(), index[:1], *arguments)
    assert torch.equal(y, expected)
    grad_x, _ = device.OPS[f"{op}_backward"](x, logabsdet, x, params, index, *arguments)
    assert torch.equal(grad_x[:, [0, 1, 2, 4, 5]], x[:, [0, 1, 2, 4, 5]])


def _arguments(op):
    """What follows index in the schema."""
    if op == "affine_coupling":
        return False, False, 1, 0.0, 0.0, 1.0, 1.0
    return None, False, 0, -3.0, 3.0, -3.0, 3.0, *KnotMap().numbers()

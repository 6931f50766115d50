"""Named calls of the couplings.

    case = coupling.SPLINES["k8"]
    x, params = case.tensors(torch.float32)
    y, logabsdet = case(x, params, inverse=True)

`evaluate` adds the gradients, `expected` is the same by the float64 reference, and
`check(case, backend, dtype)` compares the two within the op's TOLERANCES.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

import flowkern
from flowkern import ops
from flowkern.ops import SoftclipKnots, SoftplusKnots
from flowkern.ops._affine_coupling import SCALE_MAPS
from flowkern.ops._arguments import compute_dtype
from flowkern.ops._rational_quadratic_spline import TAILS
from tests import cases, tolerances
from tests.cases.tensors import generator_of, laid_out, moved

BOUND = 3.0
BOX = (-1.0, 2.0, 0.5, 3.0)


@dataclass(frozen=True)
class Case:
    """One call: `features` of `width` features transformed, selected by all, index or mask.

    layout says how x and params lie in memory (see `laid_out`), spread is the standard deviation
    of the raw parameters, and options are the op's own keyword arguments.
    """

    name: str
    op: str
    batch: tuple = (63,)
    width: int = 5
    features: int = 5
    select: str = "all"
    layout: str = "contiguous"
    spread: float = 1.0
    bins: int = 8
    options: dict = field(default_factory=dict)

    def __call__(self, x, params, inverse=False):
        """(y, logabsdet) by the op, on the backend chosen outside."""
        options = {
            name: value.to(x.device) if isinstance(value, torch.Tensor) else value
            for name, value in {**self.selection(), **self.options}.items()
        }
        return getattr(ops, self.op)(x, params, **options, inverse=inverse)

    @property
    def per_feature(self):
        """Parameters per transformed feature: the last dimension of params."""
        if self.op == "affine_coupling":
            return 1 if self.options.get("scale_map") == "additive" else 2
        return 3 * self.bins + TAILS[self.options.get("tails", "identity")].more

    def selection(self):
        """The index or mask argument; the indices come in no particular order."""
        if self.select == "all":
            return {}
        order = [*range(1, self.width, 2)][::-1] + [*range(0, self.width, 2)]
        index = torch.tensor(order[: self.features], dtype=torch.int64)
        if self.select == "index":
            return {"index": index}
        return {"mask": torch.zeros(self.width, dtype=torch.bool).index_fill(0, index, True)}

    def tensors(self, dtype=torch.float32, *, params_dtype=None, inverse=False, seed=0, device="cpu"):
        """x (*batch, D), over the interval and a little beyond, and params (*batch, T, P)."""
        generator = generator_of(seed)
        low, high = self._range(inverse)
        x = torch.rand(*self.batch, self.width, generator=generator, dtype=torch.float64)
        params = torch.randn(*self.batch, self.features, self.per_feature, generator=generator, dtype=torch.float64)
        x, params = low + (high - low) * x, self.spread * params
        return (
            laid_out(x.to(device, dtype), self.layout),
            laid_out(params.to(device, params_dtype or dtype), self.layout),
        )

    def _range(self, inverse):
        bound = self.options.get("bound", 1.0)
        if isinstance(bound, tuple):
            return bound[2:] if inverse else bound[:2]
        beyond = 1.0 if self.options.get("tails") == "none" else 1.3
        return -beyond * float(torch.as_tensor(bound).max()), beyond * float(torch.as_tensor(bound).max())


def raw_arguments(case, dtype=torch.float32, layout="contiguous"):
    """x, params and the plain arguments that the raw op of `case` takes."""
    x, params = replace(case, batch=(5,), layout=layout).tensors(dtype)
    index = case.selection().get("index")
    if case.op == "affine_coupling":
        return x, params, index, False, False, *ops.ScaleMap("sigmoid").numbers()
    bound = torch.full((params.shape[1],), 3.0, dtype=dtype)
    return x, params, index, bound, False, 0, 0.0, 1.0, 0.0, 1.0, *SoftplusKnots().numbers()


# In how many perturbed copies a unit is measured.
SAMPLES = 8


def _named(*cases):
    return {case.name: case for case in cases}


def _affine(name, **arguments):
    return Case(name, "affine_coupling", **arguments)


def _spline(name, bins=8, bound=BOUND, options=(), **arguments):
    return Case(
        name,
        "rational_quadratic_spline",
        bins=bins,
        options={"bound": bound, **dict(options)},
        **arguments,
    )


_LAYOUTS = ("transposed", "sliced", "misaligned", "expanded")

AFFINES = _named(
    *(_affine(kind, options={"scale_map": kind}) for kind in SCALE_MAPS),
    _affine(
        "constants",
        options={"scale_map": ops.ScaleMap("tanh", a=1.5, prefactor=0.5, shift_prefactor=0.1)},
    ),
    _affine("scale_first", options={"scale_map": "sigmoid", "scale_first": True}),
    _affine("additive_scale_first", options={"scale_map": "additive", "scale_first": True}),
    _affine("index", width=9, features=4, select="index"),
    _affine("mask", width=9, features=4, select="mask"),
    _affine("many_features", batch=(3,), width=131, features=70, select="mask"),
    _affine("one_feature", width=1, features=1),
    _affine("whole_vectors", width=16, features=16),
    _affine("one_row", batch=(1,)),
    _affine("long", batch=(1023,), width=3, features=3),
    _affine("batch_dimensions", batch=(2, 3, 5)),
    _affine("no_batch_dimension", batch=()),
    _affine("empty_half", features=0, select="index"),
    _affine("empty_batch", batch=(0,)),
    *(_affine(layout, layout=layout, batch=(17,)) for layout in _LAYOUTS),
    _affine("transposed_index", layout="transposed", width=9, features=4, select="index"),
)

SPLINES = _named(
    *(_spline(f"k{bins}", bins=bins) for bins in (1, 2, 3, 5, 8, 10, 16, 33, 64)),
    _spline("circular", options={"tails": "circular"}),
    _spline("circular_k1", bins=1, options={"tails": "circular"}),
    _spline("none", options={"tails": "none"}, bound=1.0),
    _spline("box", options={"tails": "none"}, bound=BOX),
    _spline("shifted", bound=(-1.0, 2.0, -1.0, 2.0)),
    _spline("bounds", bound=torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])),
    _spline("softclip", bound=5.0, options={"knot_map": SoftclipKnots()}),
    _spline(
        "softclip_circular",
        options={"tails": "circular", "knot_map": SoftclipKnots(slope_floor=1e-2)},
    ),
    _spline("scaled", options={"knot_map": SoftplusKnots(scale=0.25, min_width=1e-2, min_height=2e-3)}),
    _spline("index", width=9, features=4, select="index"),
    _spline("mask", width=9, features=4, select="mask"),
    _spline(
        "bounds_index",
        bound=torch.tensor([0.5, 1.0, 2.0, 4.0]),
        width=9,
        features=4,
        select="index",
    ),
    _spline("many_features", bins=4, batch=(3,), width=131, features=70, select="mask"),
    _spline("one_feature", width=1, features=1),
    _spline("one_row", batch=(1,)),
    _spline("long", bins=5, batch=(1023,), width=3, features=3),
    _spline("batch_dimensions", batch=(2, 3, 5)),
    _spline("no_batch_dimension", batch=()),
    _spline("empty_half", features=0, select="index"),
    _spline("empty_batch", batch=(0,)),
    *(_spline(layout, layout=layout, batch=(17,)) for layout in _LAYOUTS),
    _spline("transposed_index", layout="transposed", width=9, features=4, select="index"),
)

# The named cases of each op: who checks every op goes by this table.
NAMED = {"affine_coupling": AFFINES, "rational_quadratic_spline": SPLINES}

# One typical call of each op, for tests about the machinery around the kernels.
AFFINE = _affine("typical", width=6, features=3, select="index", options={"scale_map": "sigmoid"})
SPLINE = _spline("typical", width=6, features=3, select="index")
TYPICAL = {case.op: case for case in (AFFINE, SPLINE)}


class Result(NamedTuple):
    """What an op computes, and the gradients of <cotangents, (y, logabsdet)>."""

    y: torch.Tensor
    logabsdet: torch.Tensor
    grad_x: torch.Tensor
    grad_params: torch.Tensor


def cotangents(y, logabsdet, seed=1):
    """Fixed random gradients for y and logabsdet."""
    generator = generator_of(seed)
    return tuple(torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in (y, logabsdet))


def evaluate(case, x, params, *, backend, inverse=False, grads=None):
    """The `Result` of case(x, params) on `backend`; grads default to `cotangents`."""
    x, params = (t.detach().requires_grad_() for t in (x, params))
    with flowkern.backend(backend):
        y, logabsdet = case(x, params, inverse=inverse)
        grad_y, grad_logabsdet = cotangents(y, logabsdet) if grads is None else grads
        total = (grad_y * y).sum() + (grad_logabsdet * logabsdet).sum()
        grad_x, grad_params = torch.autograd.grad(total, (x, params))
    return Result(y.detach(), logabsdet.detach(), grad_x, grad_params)


def expected(case, x, params, *, inverse=False, grads):
    """The `Result` of the float64 reference at the same inputs."""
    grads = tuple(g.double() for g in grads)
    return evaluate(case, x.double(), params.double(), backend="reference", inverse=inverse, grads=grads)


def roundings(case, x, params, want, *, inverse=False, grads):
    """How far the reference strays from `want` when every input moves by one rounding.

    It runs in the precision that kernels compute in, on a stack of SAMPLES perturbed copies.
    """
    dtype = compute_dtype(x, params)
    strays = (moved(t.to(dtype), SAMPLES) for t in (x, params))
    grads = tuple(g.to(dtype).expand(SAMPLES, *g.shape) for g in grads)
    strayed = evaluate(case, *strays, backend="reference", inverse=inverse, grads=grads)
    return Result(*((s.double() - w).abs().nan_to_num(0, 0).amax(0) for s, w in zip(strayed, want)))


def results(case, backend, dtype, seed=0, device="cpu", inverse=False):
    """All results of a backend."""
    return evaluate(
        case, *case.tensors(dtype, inverse=inverse, seed=seed, device=device), backend=backend, inverse=inverse
    )


def check(case, backend, dtype, *, params_dtype=None, inverse=False, seed=0, device="cpu"):
    """Raise AssertionError unless `backend` agrees with the float64 reference on `case`."""
    x, params = case.tensors(dtype, params_dtype=params_dtype, inverse=inverse, seed=seed, device=device)
    check_at(case, backend, x, params, inverse=inverse)


def tolerances_of(case):
    return cases.modules()[case.op].TOLERANCES


def check_at(case, backend, x, params, *, inverse=False):
    """As `check`, for x and params of one's own."""
    got = evaluate(case, x, params, backend=backend, inverse=inverse)
    grads = cotangents(got.y, got.logabsdet)
    want = expected(case, x, params, inverse=inverse, grads=grads)
    units = roundings(case, x, params, want, inverse=inverse, grads=grads)
    label = f"{case.op} {case.name} on {backend}, {x.dtype}, {params.dtype}, inverse={inverse}"
    tolerances.assert_result(got, want, units, tolerances_of(case), label)


_EXTREMES = (1e-30, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, 1e12, 1e20, -1e20, 1e30, -1e30)


def check_gradients_fit(case, backend, inverse):
    """Raise AssertionError unless a feature's gradients are finite wherever float32 holds all of them, of
    raw parameters a quarter of which are extreme and of large cotangents."""
    extremes = torch.tensor(_EXTREMES)
    for seed, size in enumerate((1e10, 1e20, 1e30)):
        x, params = case.tensors(torch.float32, seed=seed, inverse=inverse)
        at = torch.randint(0, 4 * len(extremes), params.shape, generator=generator_of(seed))
        params = torch.where(at < len(extremes), extremes[at % len(extremes)], params)
        grads = [size * g for g in cotangents(x, x[:, 0])]
        got = evaluate(case, x, params, backend=backend, inverse=inverse, grads=grads)
        want = expected(case, x, params, inverse=inverse, grads=grads)
        fits = want.grad_params.abs().amax(-1).maximum(want.grad_x.abs()) < 1e36
        assert got.grad_x[fits].isfinite().all(), f"{case.name}: grad_x, cotangents of {size}"
        assert got.grad_params[fits].isfinite().all(), f"{case.name}: grad_params, cotangents of {size}"


def check_index_out_of_range(op, kernels, arguments):
    """The log-det of such a row is NaN, and all its other features are right.

    kernels: {op: function}; arguments: what follows the index in the schema.
    """
    x, params = TYPICAL[op].tensors()
    index = torch.tensor([3, 6, -1])
    y, logabsdet = kernels[op](x, params, index, *arguments)
    assert logabsdet.isnan().all()
    expected, _ = kernels[op](x, params[:, :1].contiguous(), index[:1], *arguments)
    assert torch.equal(y, expected)
    grad_x, _ = kernels[f"{op}_backward"](x, logabsdet, x, params, index, *arguments)
    assert torch.equal(grad_x[:, [0, 1, 2, 4, 5]], x[:, [0, 1, 2, 4, 5]])

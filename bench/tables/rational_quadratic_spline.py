"""Tables of the rational-quadratic spline: 32 features, 8 bins, all features transformed."""

import torch
import torch.nn.functional as F

import flowkern
from bench import ops, peers
from flowkern.ops import SoftclipKnots, SoftplusKnots, rational_quadratic_spline

nflows_splines = peers.optional("nflows.transforms.splines")
normflows_splines = peers.optional("normflows.utils.splines")
zuko_transforms = peers.optional("zuko.transforms")
FEATURES, BINS, BOUND = 32, 8, 3.0
ZUKO_KNOTS = SoftclipKnots()


QUICK = {"batches": (1, 64), "compiled": ()}


def on_gpu(dry_run, compiled):
    return {"batches": (3,) if dry_run else (1, 2048, 2**18), "streaming": (), "compiled": compiled}


def tables(batches=(1, 64, 2048, 32768), streaming=(32768,), compiled=("compile",)):
    return ops.tables(
        "rational_quadratic_spline",
        _candidates,
        x_shape=(FEATURES,),
        params_shape=(FEATURES, 3 * BINS - 1),
        batches=batches,
        streaming=streaming,
        compiled=compiled,
    )


def _candidates(direction):
    """nflows, normflows and the dense spline compute one function, zuko another."""
    plain = _plain(direction, SoftplusKnots())
    plain_zuko = _plain(direction, ZUKO_KNOTS)

    ours = "flowkern", "flowkern[zuko]"
    for name, function, plain, pair in (
        ("flowkern", _flowkern, plain, ours[0]),
        ("nflows", _nflows, plain, ours[0]),
        ("normflows", _normflows, plain, ours[0]),
        ("dense", dense, plain, ours[0]),
        ("flowkern[zuko]", _flowkern_zuko, plain_zuko, ours[1]),
        ("zuko", _zuko, plain_zuko, ours[1]),
    ):
        yield from ops.candidates(name, lambda f=function: f, direction, plain, pair, compiled=name not in ours)


def _plain(direction, knot_map):
    def function(x, params, inverse):
        with flowkern.backend("reference"):
            return rational_quadratic_spline(x, params, bound=BOUND, knot_map=knot_map, inverse=inverse)

    return lambda dtype: ops.bind(function, direction)


def _flowkern(x, params, inverse):
    return rational_quadratic_spline(x, params, bound=BOUND, inverse=inverse)


def _flowkern_zuko(x, params, inverse):
    return rational_quadratic_spline(x, params, bound=BOUND, knot_map=ZUKO_KNOTS, inverse=inverse)


def _split(params):
    return params.split((BINS, BINS, BINS - 1), dim=-1)


def _nflows(x, params, inverse):
    y, logabsdet = nflows_splines.unconstrained_rational_quadratic_spline(
        x, *_split(params), inverse=inverse, tail_bound=BOUND
    )
    return y, logabsdet.sum(-1)


def _normflows(x, params, inverse):
    y, logabsdet = normflows_splines.unconstrained_rational_quadratic_spline(
        x, *_split(params), inverse=inverse, tail_bound=BOUND
    )
    return y, logabsdet.sum(-1)


def _zuko(x, params, inverse):
    """zuko has no fused inverse: log_abs_det_jacobian evaluates the forward at the result."""
    transform = zuko_transforms.MonotonicRQSTransform(*_split(params), bound=BOUND)
    if inverse:
        y = transform._inverse(x)
        return y, -transform.log_abs_det_jacobian(y, x).sum(-1)
    y, logabsdet = transform.call_and_ladj(x)
    return y, logabsdet.sum(-1)


def dense(x, params, inverse, min_width=1e-3, min_slope=1e-3, scale=1.0):
    """nflows' formulas written for a compiler: no boolean indexing, no host synchronisation."""
    widths, heights, slopes = _split(params)
    knots_x, knots_y = (_knots(scale * raw, min_width) for raw in (widths, heights))
    slopes = F.pad(min_slope + F.softplus(slopes), (1, 1), value=1.0)
    x_in = x.clamp(-BOUND, BOUND)
    knots = knots_y if inverse else knots_x
    k = (x_in.unsqueeze(-1) >= knots[..., 1:-1]).sum(-1, keepdim=True)
    x_k, x_next, y_k, y_next, p, r = (
        values.gather(-1, k + i).squeeze(-1) for values in (knots_x, knots_y, slopes) for i in (0, 1)
    )
    w, h = x_next - x_k, y_next - y_k
    s = h / w
    curve = p + r - 2 * s
    if inverse:
        theta = _solve(x_in - y_k, h, s, p, curve)
    else:
        theta = (x_in - x_k) / w
    beta = theta * (1 - theta)
    denominator = s + curve * beta
    numerator = s**2 * (r * theta**2 + 2 * s * beta + p * (1 - theta) ** 2)
    logabsdet = torch.log(numerator) - 2 * torch.log(denominator)
    y = x_k + theta * w if inverse else y_k + h * (s * theta**2 + p * beta) / denominator
    inside = x == x_in
    logabsdet = torch.where(inside, -logabsdet if inverse else logabsdet, 0.0)
    return torch.where(inside, y, x), logabsdet.sum(-1)


def _knots(raw, min_width):
    shares = min_width + (1 - min_width * BINS) * torch.softmax(raw, dim=-1)
    inner = torch.cumsum(shares, dim=-1)[..., :-1]
    knots = F.pad(BOUND * (2 * inner - 1), (1, 0), value=-BOUND)
    return F.pad(knots, (0, 1), value=BOUND)


def _solve(rise, h, s, p, curve):
    """The root θ of the quadratic that puts y at `rise` above its knot (nflows' form)."""
    a = rise * curve + h * (s - p)
    b = h * p - rise * curve
    c = -s * rise
    return 2 * c / (-b - torch.sqrt((b**2 - 4 * a * c).clamp_min(0)))

"""Tables of one masked autoregressive layer: 64 features, two hidden layers of 256 units.

The layer is that of nflows; of normflows, whose scale has another map; and of zuko. By hand is the
inverse of nflows' layer, unit by unit in plain PyTorch. Tables "cost" have D features and hidden
layers of 4·D units.

No layer can be faster than the product of each weight that the masks keep with each sample, which
"limit: masked matmul" takes as one `torch.mm` of as many operations; with gradients, three of them.
"""

import itertools
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

import flowkern
from bench import ops, peers
from bench.harness import Candidate, Table

nflows_transforms = peers.optional("nflows.transforms")
normflows_flows = peers.optional("normflows.flows")
zuko_flows = peers.optional("zuko.flows")
WORKS = ("forward", "forward+backward", "inverse", "inverse+backward")
COST_FEATURES, COST_BATCH = (8, 16, 32, 64, 128, 256, 512, 1024), 256
_PEER_FEATURES = 128  # as far as nflows' own inverse is timed: it grows as D³
# The gradient of a ReLU network jumps where an input is within rounding of zero: see flows.TASKS.
_FLOORS = {"forward+backward": 1e-3, "inverse+backward": 1e-3}


class Size(NamedTuple):
    features: int
    hidden: int


QUICK = {"batches": (4,), "costs": (8, 16), "compiled": ()}


def on_gpu(dry_run, compiled):
    """Small layers in a dry run, because the emulation takes minutes for others."""
    if dry_run:
        return {"batches": (3,), "costs": (4,), "compiled": compiled, "size": Size(5, 16)}
    return {"batches": (1, 2048, 65536), "costs": (64, 256, 1024), "compiled": compiled}


def tables(batches=(16, 1024), costs=COST_FEATURES, compiled=("compile",), size=Size(64, 256)):
    """One Table for each work and batch size, and one for each number of features in `costs`."""
    for batch, work in itertools.product(batches, WORKS):
        yield _table(
            f"{work}-{batch}", f"{work}, N={batch}", size, batch, work,
            [*_candidates(size, work, compiled), _limit(size, batch, work)],
        )  # fmt: skip
    for features in costs:
        size = Size(features, 4 * features)
        yield _table(
            f"cost-{features}", f"inverse, N={COST_BATCH}", size, COST_BATCH, "inverse",
            [*_cost(size), _limit(size, COST_BATCH, "inverse")],
        )  # fmt: skip


def _table(name, title, size, batch, work, candidates):
    return Table(
        f"masked_autoregressive-{name}",
        f"masked_autoregressive, {title}, D={size.features}, H={size.hidden}",
        lambda: [_inputs(size, batch, work)],
        tuple(candidates),
        _FLOORS.get(work, 2e-6),
    )


def _inputs(size, batch, work):
    x = torch.randn(batch, size.features).requires_grad_("backward" in work)
    return [x, torch.randn(batch, size.features), torch.randn(batch)]


def _candidates(size, work, compiled):
    """Each library beside flowkern inside it; the forward pass beside every inverse."""
    for library in ("nflows", "normflows", "zuko"):
        plain, ours = partial(_plain, library, size, work), f"accelerate({library})"
        by_compilers = compiled if work in WORKS[:2] else ()
        for name in (ours, library, *(f"{compiler}({library})" for compiler in by_compilers)):
            yield Candidate(name, partial(_make, name, library, size, work), plain, ours)
    if work == "inverse":
        make, ours = partial(_by_hand, size), "accelerate(nflows)"
        yield Candidate("hand", make, partial(_plain, "nflows", size, work), ours)
    if work in WORKS[2:]:
        yield _forward_of("nflows", size)


def _cost(size):
    """nflows' layer: the inverse as far as it can be afforded, and the forward of both."""
    plain, ours = partial(_plain, "nflows", size, "inverse"), "accelerate(nflows)"
    yield Candidate(ours, partial(_make, ours, "nflows", size, "inverse"), plain, ours)
    if size.features <= _PEER_FEATURES:
        yield Candidate("nflows", partial(_make, "nflows", "nflows", size, "inverse"), plain, ours)
    yield _forward_of("nflows", size)
    yield _forward_of(ours, size)


def _forward_of(name, size):
    make = partial(_make, name, "nflows", size, "forward")
    plain = partial(_plain, "nflows", size, "forward")
    return Candidate(f"forward of {name}", make, plain, "accelerate(nflows)")


def _make(name, library, size, work, inputs):
    layer = _build(library, size)
    if name.startswith("accelerate("):
        layer = flowkern.accelerate(layer)
    function = _DIRECTIONS[library][work.startswith("inverse")]
    compiler = ops.compiler(name)
    return _call(layer, ops.compile_(function, compiler) if compiler else function, work)


def _plain(library, size, work, dtype):
    layer = _build(library, size).to(dtype)
    forward, inverse = _DIRECTIONS[library]
    if work == "inverse" and library != "zuko":
        inverse = _fixed_point
    return _call(layer, inverse if work.startswith("inverse") else forward, work)


def _call(layer, function, work):
    if "backward" not in work:
        return torch.no_grad()(lambda x, *_: function(layer, x))
    parameters = list(layer.parameters())

    def call(x, *cotangents):
        outputs = function(layer, x)
        grad_x, *grads = torch.autograd.grad(outputs, (x, *parameters), cotangents)
        return *outputs, grad_x, grads

    return call


def _build(library, size):
    torch.manual_seed(0)
    return _BUILDERS[library](*size)


_BLOCK = {"num_blocks": 1, "use_residual_blocks": False}
_BUILDERS = {
    "nflows": lambda features, hidden: nflows_transforms.MaskedAffineAutoregressiveTransform(
        features, hidden, **_BLOCK
    ),
    "normflows": lambda features, hidden: normflows_flows.MaskedAffineAutoregressive(features, hidden, **_BLOCK),
    "zuko": lambda features, hidden: zuko_flows.MaskedAutoregressiveTransform(
        features, hidden_features=(hidden, hidden)
    ),
}
_METHODS = (lambda layer, x: layer(x), lambda layer, y: layer.inverse(y))
_DIRECTIONS = {
    "nflows": _METHODS,
    "normflows": _METHODS,
    "zuko": (
        lambda layer, x: layer().call_and_ladj(x),
        lambda layer, y: layer().inv.call_and_ladj(y),
    ),
}


def _fixed_point(layer, y):
    """nflows' inverse, ended when a pass changes nothing: then no later one does."""
    x, before = torch.zeros_like(y), None
    for _ in range(y.shape[1]):
        if before is not None and torch.equal(x, before):
            break
        before = x
        x, logabsdet = layer._elementwise_inverse(y, layer.autoregressive_net(x))
    return x, logabsdet


def _by_hand(size, inputs):
    """The inverse of nflows' layer in PyTorch: a unit is computed once all that it reads is known."""
    layer = _build("nflows", size)
    net = layer.autoregressive_net
    first, second, last = net.initial_layer, net.blocks[0].linear, net.final_layer
    order = torch.argsort(first.degrees, stable=True)
    w1 = (first.weight * first.mask)[order]
    w2 = (second.weight * second.mask)[order][:, order]
    w3 = (last.weight * last.mask)[:, order]
    b1, b2, b3 = (b.unsqueeze(-1) for b in (first.bias[order], second.bias[order], last.bias))
    degrees = torch.arange(size.features + 1)
    ends = torch.searchsorted(first.degrees[order], degrees, right=True).tolist()

    @torch.no_grad()
    def call(y, *_):
        y = y.T.contiguous()
        x, logabsdet = torch.empty_like(y), 0.0
        u, v = (y.new_empty(size.hidden, y.shape[1]) for _ in range(2))
        for i, (start, end) in enumerate(itertools.pairwise(ends)):
            rows = slice(2 * i, 2 * i + 2)
            raw, shift = torch.addmm(b3[rows], w3[rows, :start], v[:start])
            scale = F.softplus(raw) + layer._epsilon
            x[i] = (y[i] - shift) / scale
            logabsdet = logabsdet - torch.log(scale)
            new = slice(start, end)
            u[new] = torch.relu_(torch.addmm(b1[new], w1[new, : i + 1], x[: i + 1]))
            v[new] = torch.relu_(torch.addmm(b2[new], w2[new, :end], u[:end]))
        return x.T, logabsdet

    return call


def _limit(size, batch, work):
    rows = batch * (3 if "backward" in work else 1)
    return limit(lambda: [_build("nflows", size)], rows, size.hidden)


def limit(layers, rows, width):
    """As many multiplications as masked weights times rows, as one (M, width)·(width, width).

    layers: layers() gives modules with masked linear layers.
    """

    def make(inputs):
        buffers = itertools.chain.from_iterable(layer.named_buffers() for layer in layers())
        kept = sum(int(mask.sum()) for name, mask in buffers if name.endswith("mask"))
        a = torch.randn(max(1, round(rows * kept / width**2)), width)
        b = torch.randn(width, width)
        return lambda *_: (torch.mm(a, b),)

    return Candidate("limit: masked matmul", make, None)

"""What the tables of the two ops share: directions, sizes, compiled candidates, the copy limit.

A function of an op is `f(x, params, inverse) -> (y, logabsdet)`. The inputs of every table are
x, params and the cotangents of y and logabsdet.
"""

import itertools
import math

import torch

from bench.harness import Candidate, Table

DIRECTIONS = ("forward", "inverse", "forward+backward")
# What a compiled candidate is called, and how: "max-autotune" replays CUDA graphs on a GPU.
COMPILERS = {"compile": {}, "max-autotune": {"mode": "max-autotune"}}
STREAMING_BYTES = 64 * 2**20  # twice the last-level cache of the machines measured so far


def tables(op, candidates, x_shape, params_shape, batches, streaming, compiled):
    """One Table for each batch size and direction.

    Args:
        op: the name of the op.
        candidates: `candidates(bind)` lists those of one direction; `bind(f)` makes f one.
        batches: batch sizes; those in `streaming` rotate through more memory than the cache holds.
        compiled: which of `COMPILERS` take part.
    """
    for batch, direction in itertools.product(batches, DIRECTIONS):
        shapes = (batch, *x_shape), (batch, *params_shape), (batch, *x_shape), (batch,)
        moved = _bytes_moved(shapes, direction)
        sets = STREAMING_BYTES // moved + 2 if batch in streaming else 1
        yield Table(
            f"{op}-{direction}-{batch}",
            f"{op}, {direction}, N={batch}, {memory(moved, sets)}",
            lambda shapes=shapes, sets=sets, direction=direction: [_inputs(shapes, direction) for _ in range(sets)],
            (*chosen(candidates(direction), compiled), limit(moved)),
        )


def chosen(candidates, compiled):
    """Those that are not compiled, and those by one of the compilers in `compiled`."""
    return (c for c in candidates if compiler(c.name) in (None, *compiled))


def compiler(name):
    """The key of `COMPILERS` that a candidate's name begins with, or None."""
    return next((prefix for prefix in COMPILERS if name.startswith(f"{prefix}(")), None)


def limit(moved):
    """The Candidate that copies, and so moves as many bytes."""
    return Candidate("limit: copy", lambda inputs: _copy(moved, len(inputs)), None)


def candidates(name, build, direction, plain, ours="flowkern", compiled=True):
    """Candidates that run the function `build()` in `direction`: as it is, and compiled."""
    yield Candidate(name, lambda inputs: bind(build(), direction), plain, ours)
    for compiler in COMPILERS if compiled else ():

        def make(inputs, compiler=compiler):
            return bind(compile_(build(), compiler), direction)

        yield Candidate(f"{compiler}({name})", make, plain, ours)


def bind(function, direction):
    """`function` in one direction as a call of the table's four inputs."""
    inverse = direction == "inverse"
    if direction != "forward+backward":
        return lambda x, params, *_: function(x, params, inverse)

    def call(x, params, grad_y, grad_logabsdet):
        outputs = function(x, params, False)
        return *outputs, *torch.autograd.grad(outputs, (x, params), (grad_y, grad_logabsdet))

    return call


def compile_(function, compiler="compile"):
    """Compile for these very shapes; running out of recompilations is an error, not a fallback."""
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(function, dynamic=False, **COMPILERS[compiler])


def _inputs(shapes, direction):
    tensors = [torch.randn(shape) for shape in shapes]
    for tensor in tensors[:2]:
        tensor.requires_grad_(direction == "forward+backward")
    return tensors


def _bytes_moved(shapes, direction):
    """Each kernel reads its inputs once and writes its outputs once, in float32."""
    x, params, _, logabsdet = (4 * math.prod(shape) for shape in shapes)
    forward = x + params + x + logabsdet
    backward = x + params + x + logabsdet + x + params
    return forward + (backward if direction == "forward+backward" else 0)


def memory(moved, sets):
    """What a title says of the bytes moved and where they lie."""
    size = f"{moved / 2**20:.1f} MiB moved" if moved >= 2**20 else f"{moved / 2**10:.1f} KiB moved"
    return f"{size}, streaming ({sets} sets of inputs)" if sets > 1 else f"{size}, in cache"


def _copy(moved, sets):
    """Copy half of `moved` bytes, which reads and writes as many as the op must."""
    pairs = [[torch.zeros(moved // 2, dtype=torch.uint8) for _ in range(2)] for _ in range(sets)]
    rotation = itertools.cycle(pairs)

    def call(*_):
        source, target = next(rotation)
        return (target.copy_(source),)

    return call

"""Tables of sampling from the MAF with which sbi estimates posteriors by default.

Eight parameters given ten data features: five layers, each an affine autoregressive transform with
two feed-forward blocks of 50 tanh units and a random permutation. The samples are made of given
noise, as in flows.py. zuko's MAF has the same matrix products.
"""

from functools import partial

import torch

import flowkern
from bench import peers
from bench.harness import Candidate, Table
from bench.tables import masked_autoregressive

nflows_transforms = peers.optional("nflows.transforms")
zuko = peers.optional("zuko")
FEATURES, CONTEXT, HIDDEN, LAYERS = 8, 10, 50, 5


QUICK = {"batches": (4,)}


def on_gpu(dry_run, compiled):
    return {"batches": (3,) if dry_run else (1, 2048, 65536)}


def tables(batches=(1, 64, 4096)):
    for batch in batches:
        yield Table(
            f"posterior_maf-sampling-{batch}",
            f"posterior_maf, sampling, N={batch}, {FEATURES} features, {LAYERS} layers",
            lambda batch=batch: [[torch.randn(batch, FEATURES), torch.randn(batch, CONTEXT)]],
            (
                *_candidates(),
                masked_autoregressive.limit(lambda: [_nflows()], batch, HIDDEN),
            ),
        )


def _candidates():
    for build in (_nflows, _zuko):
        name = build.__name__.removeprefix("_")
        ours, plain = f"accelerate({name})", partial(_sampling, build)
        yield Candidate(ours, lambda inputs, b=build: _sampling(b, fast=True), plain, ours)
        yield Candidate(name, lambda inputs, b=build: _sampling(b), plain, ours)


def _sampling(build, dtype=torch.float32, fast=False):
    """call(noise, context) -> (samples,)."""
    torch.manual_seed(0)
    flow = build().to(dtype).eval()
    flow = flowkern.accelerate(flow) if fast else flow
    if build is _nflows:
        return torch.no_grad()(lambda noise, context: (flow.inverse(noise, context)[0],))
    return torch.no_grad()(lambda noise, context: (flow(context).transform.inv(noise),))


def _nflows():
    layers = []
    for _ in range(LAYERS):
        layers.append(
            nflows_transforms.MaskedAffineAutoregressiveTransform(
                FEATURES,
                HIDDEN,
                context_features=CONTEXT,
                num_blocks=2,
                use_residual_blocks=False,
                activation=torch.tanh,
            )
        )
        layers.append(nflows_transforms.RandomPermutation(FEATURES))
    return nflows_transforms.CompositeTransform(layers)


def _zuko():
    return zuko.flows.MAF(
        FEATURES,
        context=CONTEXT,
        transforms=LAYERS,
        randperm=True,
        hidden_features=(HIDDEN,) * 3,
        activation=torch.nn.Tanh,
    )

"""How the flows of each library are called, and the layers that their log_prob passes through.

Libraries are recognised by the qualified names of their classes, so that none is imported.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class Library(NamedTuple):
    """How to call a flow.

    log_prob: (flow, x, context) → (N,).
    sample: (flow, rows, context) → `rows` samples; context is None or has `rows` rows.
    layers: (flow, x, context) → generator of (module, call, arguments) in the order in which log_prob passes
        through them; call(module, *arguments) computes what the layer does there.
    """

    log_prob: Callable
    sample: Callable
    layers: Callable


def library_of(model):
    """The `Library` of a flow, or None for any other module."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
    known = (library for pattern, library in _LIBRARIES for name in names if re.fullmatch(pattern, name))
    return next(known, None)


def _flattened(module, containers):
    """The transforms of nested compositions, whose class names and attributes are `containers`."""
    attribute = containers.get(type(module).__name__)
    if attribute is None:
        return [module]
    return [leaf for inner in getattr(module, attribute) for leaf in _flattened(inner, containers)]


def _transform(module, x, context):
    return module(x, context)


def _in_order(modules, call, x, context):
    for module in modules:
        yield module, call, (x, context)
        x = call(module, x, context)[0]


# nflows: log_prob(x, context); sample(number for each row of the context, context).


def _nflows_sample(flow, rows, context):
    return flow.sample(rows) if context is None else flow.sample(1, context)


def _nflows_layers(flow, x, context):
    embedding = flow._embedding_net
    if context is not None and not isinstance(embedding, nn.Identity):
        yield embedding, _embed, (context,)
        context = embedding(context)
    yield from _in_order(_flattened(flow._transform, {"CompositeTransform": "_transforms"}), _transform, x, context)


def _embed(module, context):
    return module(context)


# zuko, and flowkern's own flows: flow(context) is a distribution; a transform of zuko computes when it is called.


def _distribution_log_prob(flow, x, context):
    return flow(context).log_prob(x)


def _distribution_sample(flow, rows, context):
    return flow(context).sample((rows,) if context is None else ())


def _zuko_layers(flow, x, context):
    layers = _flattened(flow.transform, {"LazyComposedTransform": "transforms"})
    return _in_order(layers, _zuko_transform, x, context)


def _zuko_transform(module, x, context):
    return module(context).call_and_ladj(x)


def _own_layers(flow, x, context):
    return _in_order(_flattened(flow.transform, {"Compose": "transforms"}), _transform, x, context)


# normflows: its transforms map noise to data; only conditional flows know a context.


def _normflows_log_prob(flow, x, context):
    return flow.log_prob(x) if context is None else flow.log_prob(x, context)


def _normflows_sample(flow, rows, context):
    return flow.sample(rows) if context is None else flow.sample(rows, context)


def _normflows_layers(flow, x, context):
    return _in_order(reversed(flow.flows), _normflows_transform, x, context)


def _normflows_transform(module, x, context):
    return module.inverse(x) if context is None else module.inverse(x, context=context)


# sbi's density estimators, around a flow of nflows or zuko: they embed the context.


def _estimator_log_prob(estimator, x, context):
    return estimator.log_prob(x.unsqueeze(0), context)[0]


def _estimator_sample(estimator, rows, context):
    return estimator.sample((1,), context)


def _estimator_layers(estimator, x, context):
    net, embedding = estimator.net, estimator.embedding_net
    library = library_of(net)
    if library is None:
        return
    if not hasattr(net, "_embedding_net"):  # nflows' flow has it inside
        yield embedding, _embed, (context,)
        context = embedding(context)
    yield from library.layers(net, x, context)


_LIBRARIES = (
    (
        r"(?:.*\.)?sbi\.neural_nets\.estimators\.base\.ConditionalDensityEstimator",
        Library(_estimator_log_prob, _estimator_sample, _estimator_layers),
    ),
    (
        r"(?:.*\.)?nflows\.flows\.base\.Flow",
        Library(lambda flow, x, context: flow.log_prob(x, context), _nflows_sample, _nflows_layers),
    ),
    (r"zuko\.(?:.*\.)?Flow", Library(_distribution_log_prob, _distribution_sample, _zuko_layers)),
    (r"normflows\.core\.NormalizingFlow", Library(_normflows_log_prob, _normflows_sample, _normflows_layers)),
    (r"flowkern\.flows\.flow\.Flow", Library(_distribution_log_prob, _distribution_sample, _own_layers)),
)

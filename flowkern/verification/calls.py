"""How the flows and layers of each library are called as maps: x → (y, log|det dy/dx|), and back.

Libraries are recognised by the qualified names of their classes, so that none is imported.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import torch


class Calls(NamedTuple):
    """forward, inverse: (model, x, context) → (y, log-det) in the direction of the data and against it."""

    forward: Callable
    inverse: Callable


def calls_of(model):
    """The `Calls` of a flow or of a layer, or None for any other module."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
    return next((calls for pattern, calls in _CALLS for name in names if re.fullmatch(pattern, name)), None)


# nflows: its flows have their map and their embedding net inside.


def _nflows_flow(model, x, context):
    return model._transform(x, context=model._embedding_net(context))


def _nflows_flow_inverse(model, y, context):
    return model._transform.inverse(y, context=model._embedding_net(context))


def _call(model, x, context):
    return model(x) if context is None else model(x, context)


def _inverse(model, y, context):
    return model.inverse(y) if context is None else model.inverse(y, context)


# zuko, and flowkern's own flows.


def _zuko_flow(model, x, context):
    return model(context).transform.call_and_ladj(x)


def _zuko_flow_inverse(model, y, context):
    return model(context).transform.inv.call_and_ladj(y)


def _zuko_transform(model, x, context):
    return model(context).call_and_ladj(x)


def _zuko_transform_inverse(model, y, context):
    return model(context).inv.call_and_ladj(y)


def _own_flow(model, x, context):
    return model.transform(x, context)


def _own_flow_inverse(model, y, context):
    return model.transform.inverse(y, context)


# normflows goes from noise to data.


def _normflows(model, x, context):
    return model.inverse_and_log_det(x) if context is None else model.inverse_and_log_det(x, context)


def _normflows_inverse(model, y, context):
    return model.forward_and_log_det(y) if context is None else model.forward_and_log_det(y, context)


# sbi's estimators hold a flow of nflows or zuko, whose context they embed.


def _estimator(which, model, x, context):
    inside = hasattr(model.net, "_embedding_net")
    context = context if inside else model.embedding_net(context)
    return getattr(calls_of(model.net), which)(model.net, x, context)


def _of_estimator(which):
    return lambda model, x, context: _estimator(which, model, x, context)


# FrEIA: blocks take and return tuples, a sequence a tensor; conditions come in a list.


def _freia(rev, model, x, context):
    is_block = not hasattr(model, "module_list")
    given = {} if context is None else {"c": [context]}
    y, logabsdet = model((x,) if is_block else x, rev=rev, **given)
    y = y if isinstance(y, torch.Tensor) else y[0]
    return y, y.new_zeros(y.shape[0]) + logabsdet


_CALLS = (
    (r"(?:.*\.)?nflows\.flows\.base\.Flow", Calls(_nflows_flow, _nflows_flow_inverse)),
    (r"(?:.*\.)?nflows\.transforms\.base\.Transform", Calls(_call, _inverse)),
    (r"zuko\.(?:.*\.)?Flow", Calls(_zuko_flow, _zuko_flow_inverse)),
    (r"zuko\.(?:.*\.)?LazyTransform", Calls(_zuko_transform, _zuko_transform_inverse)),
    (r"normflows\.core\.NormalizingFlow", Calls(_normflows, _normflows_inverse)),
    (r"normflows\.flows\.base\.Flow", Calls(_call, _inverse)),
    (r"flowkern\.flows\.flow\.Flow", Calls(_own_flow, _own_flow_inverse)),
    (
        r"(?:.*\.)?FrEIA\.(?:framework\.sequence_inn\.SequenceINN|modules\.base\.InvertibleModule)",
        Calls(functools.partial(_freia, False), functools.partial(_freia, True)),
    ),
    (
        r"(?:.*\.)?sbi\.neural_nets\.estimators\.(?:nflows_flow\.NFlowsFlow|zuko_flow\.ZukoFlow)",
        Calls(_of_estimator("forward"), _of_estimator("inverse")),
    ),
)

"""The flows of bench.tables.whole_flows in flowjax, each task jitted as a whole, where flowjax is installed.

Samples draw their noise, which the other candidates are given. XLA has as many threads as the machine has
cores, whatever torch has.
"""

import importlib.util

import torch

from bench import peers

jax, equinox, optax = peers.optional("jax"), peers.optional("equinox"), peers.optional("optax")
flows, bijections = peers.optional("flowjax.flows"), peers.optional("flowjax.bijections")
distributions = peers.optional("flowjax.distributions")


def installed():
    """Whether it is, and the tensors are where XLA's are: on the CPU."""
    return importlib.util.find_spec("flowjax") is not None and torch.get_default_device().type == "cpu"


def make(name, task, inputs):
    """call(x[, context]) that does the task."""
    x = inputs[0][0]
    flow = _flow(name, x.shape[1], inputs[0][1].shape[1] if len(inputs[0]) > 1 else None)
    if task == "log_prob":
        return _on_torch(equinox.filter_jit(lambda *arrays: flow.log_prob(*arrays)))
    if task == "sampling":
        return _on_torch(_samples(flow, x.shape[0]))
    return _on_torch(_step(flow, task != "forward and backward"))


def _flow(name, features, context):
    library, shape = name.split()
    layers, width = (8 if shape == "realnvp" else 5), (128 if library == "nflows" else 50)
    build = flows.masked_autoregressive_flow if _is_autoregressive(library, shape) else flows.coupling_flow
    spline = bijections.RationalQuadraticSpline(knots=8 if library == "nflows" else 10, interval=3)
    return build(
        jax.random.key(0),
        base_dist=distributions.Normal(jax.numpy.zeros(features)),
        transformer=spline if shape == "nsf" else None,
        cond_dim=context, flow_layers=layers, nn_width=width, nn_depth=2,
        nn_activation=jax.nn.tanh if library == "sbi" and shape == "maf" else jax.nn.relu,
    )  # fmt: skip


def _is_autoregressive(library, shape):
    return shape == "maf" or library == "zuko"


def _samples(flow, count):
    keys = iter(jax.random.split(jax.random.key(1), 100_000))

    @equinox.filter_jit
    def draw(key, *context):
        return flow.sample(key, () if context else (count,), *context)

    return lambda noise, *context: draw(next(keys), *context)


def _step(flow, optimises):
    parameters, static = equinox.partition(flow, equinox.is_inexact_array)
    optimiser = optax.adam(1e-4)
    state = [parameters, optimiser.init(parameters)]

    @equinox.filter_jit
    def step(parameters, state, *arrays):
        def loss_of(parameters):
            return -equinox.combine(parameters, static).log_prob(*arrays).mean()

        loss, grads = equinox.filter_value_and_grad(loss_of)(parameters)
        if not optimises:
            return parameters, state, (loss, grads)
        updates, state = optimiser.update(grads, state)
        return equinox.apply_updates(parameters, updates), state, loss

    def call(*arrays):
        *state[:], result = step(*state, *arrays)
        return result

    return call


def _on_torch(function):
    """A call with tensors, whose arrays are waited for."""

    def call(*tensors):
        jax.block_until_ready(function(*(jax.numpy.asarray(t.detach().numpy()) for t in tensors)))
        return ()

    return call

"""Tables of whole flows: training step, log_prob and sampling.

A training step is zero_grad, the mean of −log_prob, backward and Adam. Sampling is the inverse pass
from given noise: drawing the noise costs every library the same, and is left out so that the result
can be checked.
"""

import itertools
from functools import partial

import torch
from torch import nn

import flowkern
from bench import libraries, ops
from bench.harness import Candidate, Table

# What a task's error may be at least. The gradient of a conditioner jumps where the input of a ReLU
# is within rounding of zero; one such flip was seen to cost up to 9e-5, and none is below 2e-6.
TASKS = {"training step": 1e-3, "log_prob": 2e-6, "sampling": 2e-6}
# (candidate, library, the library that defines its right result, what it is compared with)
_CANDIDATES = (
    ("accelerate(nflows)", "nflows", "nflows", "accelerate(nflows)"),
    ("nflows", "nflows", "nflows", "accelerate(nflows)"),
    ("hand", "hand", "nflows", "accelerate(nflows)"),
    ("normflows", "normflows", "normflows", "accelerate(nflows)"),
    ("flowkern.flows", "flowkern.flows", "flowkern.flows", "flowkern.flows"),
    ("zuko", "zuko", "zuko", "flowkern.flows"),
)


QUICK = {"training": (8,), "inference": (8,), "compiled": ()}


def on_gpu(dry_run, compiled):
    training, inference = ((3,), (3,)) if dry_run else ((2048, 65536), (1, 2048, 65536))
    return {"training": training, "inference": inference, "compiled": compiled}


def tables(training=(512,), inference=(1, 64, 512), compiled=("compile",)):
    """One Table for each flow, task and batch size; `compiled` says which of `ops.COMPILERS`."""
    for shape, task in itertools.product(libraries.FEATURES, TASKS):
        features, layers = libraries.FEATURES[shape], libraries.LAYERS[shape]
        for batch in training if task == "training step" else inference:
            yield Table(
                f"{shape}-{task.replace(' ', '-')}-{batch}",
                f"{shape}, {task}, N={batch}, {features} features, {layers} layers",
                lambda batch=batch, features=features: [[torch.randn(batch, features)]],
                tuple(_candidates(shape, task, compiled)),
                TASKS[task],
            )


def _candidates(shape, task, compiled):
    plains = {library: partial(_plain, library, shape, task) for library in libraries.LOG_PROB}
    # The compiler would unroll the passes of an autoregressive inverse: minutes of compiling.
    compiled = () if (shape, task) == ("maf", "sampling") else compiled
    for name, library, defining, ours in _CANDIDATES:
        if library not in libraries.LIBRARIES[shape]:
            continue
        for compiler in (None, *compiled):
            make = partial(_make, shape, task, library, name.startswith("accelerate"), compiler)
            label = f"{compiler}({name})" if compiler else name
            yield Candidate(label, make, plains[defining], ours)
    limit = "limit: matmuls + Adam" if task == "training step" else "limit: matmuls"
    yield Candidate(limit, partial(_matmuls, shape, task), None, "accelerate(nflows)")


def _plain(library, shape, task, dtype):
    call = _call(task, library, libraries.build(library, shape).to(dtype), compiler=None)

    def reference(x):
        with flowkern.backend("reference"):
            return call(x)

    return reference


def _make(shape, task, library, accelerated, compiler, inputs):
    flow = libraries.build(library, shape)
    return _call(task, library, flowkern.accelerate(flow) if accelerated else flow, compiler)


def _call(task, library, flow, compiler):
    """`call(x)` that does the task with `flow`."""
    compile_ = partial(ops.compile_, compiler=compiler) if compiler else lambda function: function
    if task == "training step":
        log_prob = libraries.LOG_PROB[library]
        return training_step(flow, compile_(lambda x: -log_prob(flow, x).mean()))
    ask = (libraries.LOG_PROB if task == "log_prob" else libraries.SAMPLE)[library]
    return torch.no_grad()(compile_(lambda x: (ask(flow, x),)))


def training_step(flow, loss_of):
    parameters = list(flow.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step(x):
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss, [p.grad for p in parameters]

    return step


def _matmuls(shape, task, inputs):
    """Every linear layer; in training also both gradients of each, and Adam."""
    flow, batch = libraries.build("nflows", shape), inputs[0][0].shape[0]
    linears = [module for module in flow.modules() if isinstance(module, nn.Linear)]
    work = [(torch.randn(batch, m.in_features), m, torch.randn(batch, m.out_features)) for m in linears]
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4)

    def infer(_):
        for x, linear, _ in work:
            nn.functional.linear(x, linear.weight, linear.bias)

    def train(x):
        infer(x)
        for x, linear, grad in work:
            grad @ linear.weight, grad.mT @ x
        optimizer.step()

    return torch.no_grad()(train if task == "training step" else infer)

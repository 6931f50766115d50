"""Do the plain and the accelerated flow give the same numbers?

Both run the same weights in float32, and both are compared with the plain flow in float64, which
tells how much of a difference is rounding that the plain flow has as well.
"""

import copy

import torch

from demo import digits


@torch.no_grad()
def agreement(plain, accelerated, data, samples=500):
    """Rows (what, largest difference, the plain flow's own error, the accelerated flow's).

    The errors are distances to the plain flow in float64; None where nflows stopped.
    """
    exact = copy.deepcopy(plain).double()
    logits, _ = digits.to_logits(data.held_out, torch.full_like(data.held_out, 0.5))
    classes = data.held_out_classes
    noise = torch.randn(samples, digits.FEATURES, generator=torch.Generator().manual_seed(2))
    wanted = torch.eye(digits.CLASSES).repeat(samples // digits.CLASSES, 1)
    return [
        row(
            f"log-likelihood, {len(logits)} held out (nats)",
            lambda flow, dtype: flow.log_prob(logits.to(dtype), classes.to(dtype)),
            (plain, accelerated, exact),
        ),
        row(
            f"{samples} samples, same noise (logits)",
            lambda flow, dtype: flow._transform.inverse(noise.to(dtype), wanted.to(dtype))[0],
            (plain, accelerated, exact),
        ),
    ]


@torch.no_grad()
def row(what, compute, flows):
    """A row of `agreement` for what compute(flow, dtype) gives of (plain, accelerated, exact)."""
    dtypes = (torch.float32, torch.float32, torch.float64)
    plain, fast, exact = (_attempt(compute, flow, dtype) for flow, dtype in zip(flows, dtypes))
    return what, _distance(plain, fast), _distance(plain, exact), _distance(fast, exact)


def _attempt(compute, flow, dtype):
    """None where nflows' inverse refuses a discriminant that rounding made negative."""
    try:
        return compute(flow.eval(), dtype)
    except AssertionError:
        return None


def _distance(a, b):
    return None if a is None or b is None else (a - b).abs().max().item()

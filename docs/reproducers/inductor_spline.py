"""The gradients of nflows' spline, eager and compiled, against float64 (torch 2.13, CPU): python inductor_spline.py"""

import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

torch.manual_seed(0)
x = torch.randn(2048, 32)
raw = [torch.randn(2048, 32, n) for n in (8, 8, 7)]


def gradients(spline, dtype):
    inputs = [x.to(dtype).requires_grad_(), *(r.to(dtype).requires_grad_() for r in raw)]
    y, logabsdet = spline(*inputs, tails="linear", tail_bound=3.0)
    return torch.autograd.grad(y.sum() + logabsdet.sum(), inputs)


right = gradients(unconstrained_rational_quadratic_spline, torch.float64)
for name, spline in (
    ("eager", unconstrained_rational_quadratic_spline),
    ("compiled", torch.compile(unconstrained_rational_quadratic_spline, dynamic=False)),
):
    found = gradients(spline, torch.float32)
    errors = [((a - b).abs() / (b.abs() + b.abs().mean())).mean().item() for a, b in zip(found, right)]
    print(name, "  ".join(f"{of} {error:.0e}" for of, error in zip(("x", "widths", "heights", "slopes"), errors)))

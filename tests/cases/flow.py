"""Small flows through which an op is called."""

import torch

import flowkern


def log_prob(kind, **options):
    """log p(x) of samples x (…, 3) by a flow of this class, as a function of x in float64."""
    made = getattr(flowkern.flows, kind)(3, hidden_features=(8, 8), **options).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2
    return lambda x: made().log_prob(x)

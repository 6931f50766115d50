"""What the laws of vector fields and those of continuous flows share."""

import torch


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def randomised(module, spread=0.5):
    """The module in float64 with random parameters."""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(spread * torch.randn_like(parameter))
    return module


def hooked(net):
    net[0].register_forward_hook(lambda *_: None)
    return net

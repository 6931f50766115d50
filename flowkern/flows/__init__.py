"""Flows: modules that return a distribution, `flow(context).log_prob(x)`."""

from flowkern.flows.autoregressive import IAF, MAF, AutoregressiveNSF
from flowkern.flows.continuous import CNF
from flowkern.flows.coupling import NICE, NSF, RealNVP
from flowkern.flows.flow import Flow

__all__ = ["CNF", "IAF", "MAF", "NICE", "NSF", "AutoregressiveNSF", "Flow", "RealNVP"]

"""Flows: modules that return a distribution, `flow(context).log_prob(x)`."""

from flowkern.flows.coupling import NICE, NSF, RealNVP
from flowkern.flows.flow import Flow

__all__ = ["NICE", "NSF", "Flow", "RealNVP"]

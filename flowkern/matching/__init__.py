"""Flow matching: training a velocity field by regression, without solving an equation."""

from flowkern.matching.flow_matching import FlowMatching
from flowkern.matching.optimal_transport import exact_pairing, sinkhorn_pairing

__all__ = ["FlowMatching", "exact_pairing", "sinkhorn_pairing"]

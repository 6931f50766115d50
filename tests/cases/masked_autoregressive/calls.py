"""The op as a function of one tensor: BATCHED of x (2, 3)."""

from tests.cases.flow import log_prob

BATCHED = {"masked_autoregressive": lambda: log_prob("MAF")}

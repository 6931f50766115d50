"""How the solve of an ODE ended: status codes, and what is raised or warned of."""

import sys
import warnings
from enum import IntEnum

import torch

from flowkern import _torch


class Status(IntEnum):
    """How the solve of a sample ended."""

    OK = 0
    STEP_UNDERFLOW = 1
    NON_FINITE = 2
    STEP_LIMIT = 3


_REASONS = {
    Status.STEP_UNDERFLOW: "the step size fell below the resolution of t (a stiff or singular field?)",
    Status.NON_FINITE: "the state or its derivative is not finite",
    Status.STEP_LIMIT: "max_num_steps was reached",
}


class _Failure(Exception):
    def __init__(self, message, status):
        super().__init__(message, status)  # of these a pickle is made
        self.status = status

    def __str__(self) -> str:
        return self.args[0]


class SolverError(_Failure, RuntimeError):
    """A solve did not reach the last time. `status` is a tensor (N,) of `Status`, or () for all."""


class SolverWarning(_Failure, UserWarning):
    """The same as a warning; outputs that were not reached are NaN."""


_LIBRARIES = ("flowkern", "torch", "zuko", "torchdiffeq", "flow_matching", "torchdyn")


def check_finite(finite: torch.Tensor, name: str, on_failure: str) -> None:
    """`fail` where ends are not finite; finite is (N,), or () for all."""
    if _torch.maps_over(finite):
        raise NotImplementedError("on_failure: the ends are values that torch.func.vmap maps over; expected None there")
    if not finite.all():
        fail(name, torch.where(finite, int(Status.OK), int(Status.NON_FINITE)), on_failure)


def fail(name: str, status: torch.Tensor, on_failure: str) -> None:
    """Raise or warn that a method failed, with how many samples stopped and why."""
    counts = {reason: int((status == code).sum()) for code, reason in _REASONS.items()}
    total = f" of {status.numel()} samples" if status.dim() else ""
    parts = [f"{n}{total}: {reason}" if total else reason for reason, n in counts.items() if n]
    message = f"{name} did not reach the last time: {'; '.join(parts)}"
    if on_failure == "raise":
        raise SolverError(message, status)
    warnings.warn(SolverWarning(message, status), stacklevel=_callers_level())


def _callers_level() -> int:
    """The stack level, seen from the caller here, of the code that called flowkern or a library around it."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level

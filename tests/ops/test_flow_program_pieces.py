"""Long calls of flow programs on the CPU in pieces: the same numbers, and signals are heard."""

import signal

import pytest
import torch

from flowkern import backends, flows
from flowkern.ops._flow_program import function

pytestmark = pytest.mark.skipif(backends.unavailable("cpu") is not None, reason="the CPU kernels are not built")


@pytest.fixture
def pieces(monkeypatch):
    """The rows of each piece, in a list; a piece is short."""
    seen, apply = [], function.rule.apply
    monkeypatch.setattr(function, "WORK", 2e5)
    monkeypatch.setattr(
        function.rule, "apply", lambda backend, plain, x, *rest: seen.append(len(x)) or apply(backend, plain, x, *rest)
    )
    return seen


def flow(context):
    result = flows.NSF(4, context, bins=4, transforms=2, hidden_features=(8,)).double()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.normal_(0, 0.3)
    return result


@pytest.mark.parametrize("context", [0, 2])
def test_pieces_give_the_numbers_of_one_call(context, pieces, monkeypatch):
    model, x = flow(context), torch.randn(300, 4, dtype=torch.float64)
    c = torch.randn(300, context, dtype=torch.float64) if context else None
    results = []
    for work in (2e5, 1e12):
        monkeypatch.setattr(function, "WORK", work)
        pieces.clear()
        y, logabsdet = model.transform.inverse(x, c)
        density = model(c).log_prob(x)
        total = y.sin().sum() + (density * logabsdet).sum()
        results.append((y, logabsdet, density, *torch.autograd.grad(total, list(model.parameters()))))
        assert sum(pieces) == 600 and (len(pieces) > 4) == (work == 2e5)
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def test_a_signal_is_heard_within_a_call(pieces):
    class Alarm(BaseException):  # as KeyboardInterrupt: what looks at modules catches any other
        pass

    def ring(*_):
        raise Alarm

    model, x = flow(0).requires_grad_(False), torch.randn(200_000, 4, dtype=torch.float64)
    model().log_prob(x[:2])  # which finds out what the program is
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):  # noqa: PT012 (it rings in either line)
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            model().log_prob(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sum(pieces) < 200_000

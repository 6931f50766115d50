"""What fused layers of zuko return; imported where zuko is."""

import functools
import weakref

from torch.distributions import Distribution, Transform
from zuko.distributions import NormalizingFlow
from zuko.transforms import AutoregressiveTransform, ComposedTransform, FreeFormJacobianTransform

from flowkern import _torch


class FusedAutoregressiveTransform(AutoregressiveTransform):
    """zuko's AutoregressiveTransform, computed by `evaluate` wherever that gives a result.

    Args:
        evaluate: evaluate(x, inverse) -> (y, ladj), or None to leave the call to zuko.
        meta, passes: as for `AutoregressiveTransform`.
    """

    def __init__(self, evaluate, meta, passes, **kwargs):
        super().__init__(meta, passes, **kwargs)
        self.evaluate = evaluate

    def _call(self, x):
        return self.call_and_ladj(x)[0]

    def _inverse(self, y):
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x, y):
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x):
        return self.evaluate(x, False) or super().call_and_ladj(x)

    def inverse_and_ladj(self, y):
        """x and the log-det of the inverse at y."""
        found = self.evaluate(y, True)
        if found is not None:
            return found
        x = super()._inverse(y)
        return x, -self.log_abs_det_jacobian(x, y)

    @property
    def inv(self):
        inverse = None if self._inv is None else self._inv()
        if inverse is None:
            inverse = FusedInverse(self)
            self._inv = weakref.ref(inverse)
        return inverse


class FusedInverse(_torch.InverseTransform):
    """The inverse of a `FusedAutoregressiveTransform`, with its log-det in the same pass."""

    def call_and_ladj(self, y):
        return self._inv.inverse_and_ladj(y)


class FusedFreeFormJacobianTransform(FreeFormJacobianTransform):
    """zuko's FreeFormJacobianTransform, computed by `solve` wherever that gives a result.

    Args:
        solve: solve(x, t0, t1, trace) -> (y, ladj), or None to leave the call to zuko.
        plain: the transform of zuko.
    """

    def __init__(self, solve, plain, **kwargs):
        super().__init__(plain.f, plain.t0, plain.t1, plain.phi, plain.atol, plain.rtol, plain.exact, **kwargs)
        self.solve = solve

    def _call(self, x):
        found = self.solve(x, self.t0, self.t1, None)
        return super()._call(x) if found is None else found[0]

    def _inverse(self, y):
        found = self.solve(y, self.t1, self.t0, None)
        return super()._inverse(y) if found is None else found[0]

    def call_and_ladj(self, x):
        found = self.solve(x, self.t0, self.t1, "exact" if self.exact else "normal")
        return super().call_and_ladj(x) if found is None else found

    @property
    def inv(self):
        return FusedFreeFormJacobianTransform(self.solve, super().inv)


class FusedComposedTransform(ComposedTransform):
    """zuko's ComposedTransform, computed by `evaluate` wherever that gives a result.

    Args:
        evaluate: evaluate(x, inverse) -> (y, ladj), or None to leave the call to zuko.
        make: make() -> zuko's own transform.
    """

    def __init__(self, evaluate, make, **kwargs):
        Transform.__init__(self, **kwargs)
        self.evaluate, self.make = evaluate, make

    @functools.cached_property
    def plain(self):
        """The transform of zuko."""
        return self.make()

    transforms = property(lambda self: self.plain.transforms)
    domain_dim = property(lambda self: self.plain.domain_dim)
    codomain_dim = property(lambda self: self.plain.codomain_dim)

    def _call(self, x):
        found = self.evaluate(x, False)
        return self.plain(x) if found is None else found[0]

    def _inverse(self, y):
        found = self.evaluate(y, True)
        return self.plain.inv(y) if found is None else found[0]

    def call_and_ladj(self, x):
        return self.evaluate(x, False) or self.plain.call_and_ladj(x)

    @property
    def inv(self):
        backwards = functools.partial(_backwards, self.evaluate)
        return FusedComposedTransform(backwards, lambda: self.plain.inv)


def _backwards(evaluate, x, inverse):
    return evaluate(x, not inverse)


class FusedFlow(NormalizingFlow):
    """zuko's NormalizingFlow, whose log_prob is computed by `density` wherever that gives a result.

    Args:
        density: density(x) -> log p(x), or None to leave the call to zuko.
        make: make() -> zuko's own distribution.
    """

    def __init__(self, density, make):
        Distribution.__init__(self, validate_args=False)
        self.density, self.make = density, make

    @functools.cached_property
    def plain(self):
        """The distribution of zuko."""
        return self.make()

    transform = property(lambda self: self.plain.transform)
    base = property(lambda self: self.plain.base)
    reinterpreted = property(lambda self: self.plain.reinterpreted)

    def expand(self, batch_shape, new=None):
        return self.plain.expand(batch_shape, new)

    def log_prob(self, x):
        found = self.density(x)
        return self.plain.log_prob(x) if found is None else found

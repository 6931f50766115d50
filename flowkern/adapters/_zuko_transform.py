"""What a fused autoregressive layer of zuko returns; imported where zuko is."""

import weakref

from torch.distributions.transforms import _InverseTransform
from zuko.transforms import AutoregressiveTransform


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


class FusedInverse(_InverseTransform):
    """The inverse of a `FusedAutoregressiveTransform`, with its log-det in the same pass."""

    def call_and_ladj(self, y):
        return self._inv.inverse_and_ladj(y)

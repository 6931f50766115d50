"""The regression loss of flow matching for a velocity field."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowkern.matching import optimal_transport
from flowkern.ops import probability_path
from flowkern.ops._arguments import check_tensor
from flowkern.ops._probability_path import PATHS, check_sigma


class FlowMatching(nn.Module):
    """Fits a field v so that dx/dt = v(t, x, c) carries noise at t = 0 to data at t = 1.

    The loss is E |v(t, x_t, c) − u_t|² over pairs (x0, x1), times t and points x_t of a path between
    them with velocity u_t, see `flowkern.ops.probability_path`. Nothing is integrated.

    Args:
        field: a module called as `field(t, x, context)`, t (N,) and x (N,) or (N, …), context None or (N, …);
            it returns the velocity, like x.
        path: "conditional", "target", "variance_preserving" or "schroedinger_bridge". "target" starts
            at normal noise of its own and takes no x0.
        coupling: how x0 and x1 of a batch are paired. None: as they come. "ot": by an exact optimal
            transport plan, computed by POT on the CPU. "sinkhorn": by an entropic plan, computed on
            the tensors' device; that is not exact, see `sinkhorn_pairing`. Its regularisation is 2σ²
            for the Schrödinger bridge, which makes that the bridge's own coupling, else 5 % of the
            mean cost. Pairs are sought over the whole batch: with contexts that differ each gets
            noise of its own kind, and p(x | context) from standard normal noise comes out wrong.
        sigma: the path's σ ≥ 0, a number, NumPy's too, or a tensor of one that requires no gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
        ImportError: coupling "ot" without POT.

    Source: Lipman et al., Flow matching for generative modeling (2023); Tong et al., Improving and
    generalizing flow-based generative models with minibatch optimal transport (2024), algorithms 1–4.

    Example:
        >>> import torch
        >>> from flowkern import matching, nn
        >>> model = matching.FlowMatching(nn.VectorField(2), coupling="ot")
        >>> model.loss(torch.randn(16, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        field: nn.Module,
        path: str = "conditional",
        coupling: str | Callable[..., Any] | None = None,
        sigma: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(field, nn.Module):
            raise TypeError(f"field: expected a torch.nn.Module, got {type(field).__name__}")
        if not isinstance(path, str) or path not in PATHS:
            raise ValueError(f"path: expected one of {', '.join(PATHS)}, got {path!r}")
        if not (coupling is None or isinstance(coupling, str) and coupling in ("ot", "sinkhorn")):
            raise ValueError(f"coupling: expected None, 'ot' or 'sinkhorn', got {coupling!r}")
        if coupling is not None and path == "target":
            raise ValueError(f"coupling: expected None, as the target path has no x0, got {coupling!r}")
        sigma = check_sigma(sigma)
        if coupling == "sinkhorn" and path == "schroedinger_bridge" and not sigma > 0:
            raise ValueError(f"sigma: the entropic coupling needs one above 0, got {sigma!r}")
        if coupling == "ot":
            optimal_transport.require_pot()
        self.field, self.path, self.coupling, self.sigma = field, path, coupling, sigma

    def loss(
        self,
        x1: torch.Tensor,
        x0: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        generator: Any = None,
        t: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean over samples and features of |v(t, x_t, context) − u_t|².

        Args:
            x1: data (N,) or (N, …).
            x0: a batch of the source, (M,) or (M, …). Where it has another number of samples, each x1 is paired with
                one that is drawn, by the coupling or evenly. Default: standard normal noise.
            context: what belongs to x1, handed on to the field; pairing reorders x0 alone.
            generator: where all random numbers come from. Default: torch's own on x1's device.
            t: times (N,) in [0, 1]. Default: drawn evenly.

        Raises:
            TypeError, ValueError: x1, x0 or t has the wrong type, dtype or shape, or the field's velocity has.
        """
        check_tensor("x1", x1)
        path, x0 = self._start(x1, x0, generator)
        seed = None
        if t is None or self.sigma > 0 or path == "target":  # else nothing is drawn
            seed = torch.randint(2**63 - 1, (), device=x1.device, generator=generator)
        t, x_t, u_t = probability_path(x0, x1, t, path=path, sigma=self.sigma, seed=seed)
        velocity = self.field(t.to(x_t.dtype), x_t, context)
        if velocity.shape != u_t.shape:
            raise ValueError(f"field: expected a velocity of shape {tuple(u_t.shape)}, got {tuple(velocity.shape)}")
        return (velocity - u_t).square().mean()

    forward = loss  # what torch.nn.parallel.DistributedDataParallel calls

    def _start(self, x1: torch.Tensor, x0: torch.Tensor | None, generator: Any) -> tuple[str, torch.Tensor | None]:
        """The path to take, and where it starts."""
        if self.path == "target":
            if x0 is not None:
                raise ValueError("x0: the target path starts at noise of its own and takes none")
            return self.path, None
        if x0 is None and self.coupling is None and self.path == "conditional" and self.sigma == 0:
            return "target", None  # the same path, whose start is drawn in the kernel
        if x0 is None:
            x0 = x1.new_empty(x1.shape).normal_(generator=generator)  # unlike randn, with any batch size
        check_tensor("x0", x0, x1, of="x1")
        if x0.shape[1:] != x1.shape[1:] or x0.dim() != x1.dim():
            raise ValueError(f"x0: expected samples of shape {tuple(x1.shape[1:])}, got {tuple(x0.shape[1:])}")
        samples, needed = x0.shape[0], x1.shape[0]  # not by len, which torch.export takes for a constant
        if samples == 0 < needed:
            raise ValueError(f"x0: expected at least one sample, to be paired with {needed}")
        if self.coupling == "ot":
            x0 = x0[optimal_transport.exact_pairing(x0, x1)]
        elif self.coupling == "sinkhorn":
            bridge = self.path == "schroedinger_bridge"
            epsilon = 2 * self.sigma**2 if bridge else None
            x0 = x0[optimal_transport.sinkhorn_pairing(x0, x1, epsilon, generator=generator)]
        elif samples != needed:
            x0 = x0[torch.randint(samples, (needed,), device=x1.device, generator=generator)]
        return self.path, x0

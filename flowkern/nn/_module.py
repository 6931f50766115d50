"""`torch.nn.Module`, to a type checker one whose parameters, buffers and modules may be of any type."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:

    class Module(nn.Module):
        """What torch declares as a tensor or a module."""

        def __getattr__(self, name: str) -> Any: ...

else:
    Module = nn.Module

"""Linear layers of several networks at once: the bias is added into the product, not into a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class BatchedLinear(TorchFunctionMode):
    """Inside vmap over the parameters, spare each ``F.linear`` with a bias a temporary as large as its output."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call what was called, or the layer in two steps."""
        if func is F.linear and len(args) == 3 and not kwargs and args[2] is not None:
            x, weight, bias = args
            product: torch.Tensor = F.linear(x, weight)
            try:
                return product.add_(bias)
            except RuntimeError:  # the networks share x and weight, not the bias: one product cannot take them all
                return product + bias
        return func(*args, **(kwargs or {}))

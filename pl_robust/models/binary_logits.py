"""Two logits for a network of one, as binary tasks are published."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BinaryLogits(nn.Module):
    """The logits (0, f) of the two classes that a network's only output f tells apart by its sign.

    Their cross-entropy is the binary cross-entropy of f, and class 1 is predicted where f > 0, so that a network of one
    output fits wherever logits [B, 2] are asked for: training, attacks, evaluation. Its tangent kernel, traced over the
    two logits, is that of f.

    Args:
        net: the network, inputs [B, ...] -> outputs [B, 1] or [B].

    Raises:
        TypeError: if ``net`` is no nn.Module.
        ValueError: on calling, if it gives something else.

    Example:
        >>> BinaryLogits(nn.Identity())(torch.tensor([[3.0]]))
        tensor([[0., 3.]])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be an nn.Module, got {type(net).__name__}")
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, 2] of inputs [B, ...]."""
        outputs: Tensor = self.net(x)
        if list(outputs.shape) not in ([len(x)], [len(x), 1]):
            raise ValueError(
                f"BinaryLogits takes a net of one output, [{len(x)}, 1] or [{len(x)}] here, got {list(outputs.shape)}; "
                "a net of two logits needs it not"
            )
        column = outputs.view(-1, 1)
        return torch.cat([torch.zeros_like(column), column], dim=1)

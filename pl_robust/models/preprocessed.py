"""A fixed transform as the first layer of a network, so that attacks go through it."""

from __future__ import annotations

from torch import Tensor, nn


class Preprocessed(nn.Module):
    """A network that sees transformed images: ``net(transform(x))``.

    ``nn.Sequential(transform, net)`` with names, so that a configuration can say it: a ``DCTLowPass`` before a
    ``preact_resnet18`` is the network of the catastrophic-overfitting paper's low-pass runs. Attacks differentiate
    through the transform, and their eps and bounds speak of images before it.

    Args:
        transform: differentiable map of images [B, C, H, W].
        net: the network behind it, images -> logits [B, K].

    Raises:
        TypeError: if one of the two is no nn.Module.
    """

    def __init__(self, transform: nn.Module, net: nn.Module) -> None:
        super().__init__()
        for name, part in (("transform", transform), ("net", net)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"`{name}` must be an nn.Module, got {type(part).__name__}")
        self.transform = transform
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, K] of images [B, C, H, W]."""
        logits: Tensor = self.net(self.transform(x))
        return logits

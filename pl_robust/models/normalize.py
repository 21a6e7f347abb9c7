"""Per-channel normalization as the first layer of a network, so that attacks and data stay in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Map images [B, C, H, W] to ``(x - mean) / std``, channel by channel.

    The constants are buffers that move with the module but stay out of ``state_dict``: they are settings, which the
    constructor brings back, and checkpoints of the same network without normalization keep loading.

    Args:
        mean: C numbers, in the units of the input (for images in [0, 1]: CIFAR-10 has about 0.49, 0.48, 0.45).
        std: C numbers > 0, in the same units.

    Raises:
        ValueError: if ``mean`` and ``std`` are empty or differ in length, or hold numbers that are not finite, or
            ``std`` holds one that is not positive; on calling, if the input has another number of channels.

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(
                f"`mean` and `std` must have one number per channel each, got {list(mean)} and {list(std)}"
            )
        if not all(math.isfinite(value) for value in (*mean, *std)):
            raise ValueError(f"`mean` and `std` must be finite, got {list(mean)} and {list(std)}")
        if min(std) <= 0:
            raise ValueError(f"`std` must be positive in every channel, got {list(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, float [B, C, H, W]."""
        # Without this check one channel would silently broadcast to C.
        if x.ndim < 3 or x.shape[-3] != len(self.mean):
            raise ValueError(
                f"Normalize was given {len(self.mean)} channels, got an input of shape {list(x.shape)}; "
                "it must be [B, C, H, W] with as many channels as `mean` and `std`"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the constants in the printed network."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"

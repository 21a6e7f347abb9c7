"""The luminance of RGB images, as published and as PIL has it."""

from __future__ import annotations

import torch
from torch import Tensor

_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601; torchvision's add up to 0.9999 and turn white into 254


def luminance(images: Tensor) -> Tensor:
    """Turn images [..., 3, H, W] into [..., 1, H, W] of the same dtype; uint8 is rounded."""
    gray: Tensor = torch.tensordot(images.movedim(-3, -1).float(), torch.tensor(_WEIGHTS), dims=1).unsqueeze(-3)
    return gray.round().to(torch.uint8) if images.dtype == torch.uint8 else gray.to(images.dtype)

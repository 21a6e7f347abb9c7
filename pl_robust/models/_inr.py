"""What the networks on coordinates share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def check_coordinates(x: Tensor, in_features: int, network: str) -> None:
    """Refuse what are no coordinates of ``in_features`` dimensions.

    Raises:
        TypeError: if they are no tensor, or not floating point.
        ValueError: if the last axis has another length.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"coordinates must be a tensor [..., {in_features}], got {type(x).__name__}")
    if x.ndim < 1 or x.shape[-1] != in_features:
        raise ValueError(
            f"this {network} takes coordinates [..., {in_features}], got {list(x.shape)}; "
            "`in_features` sets their dimension"
        )
    if not x.is_floating_point():
        raise TypeError(f"coordinates must be floating point, in [-1, 1] or [0, 1], got {x.dtype}")


def precise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` in the precision of the weights, under autocast too.

    For the ends of a network: in bfloat16, with its 8 bits, neighbours on a grid of 512 points would be one point, and
    values that differ by 1/256 one value.
    """
    if x.is_meta:  # has no autocast
        return F.linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), weight, bias)

"""Which points of a grid are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Split: TypeAlias = Literal["all", "every", "random"]


def train_mask(shape: Sequence[int], split: Split, stride: int, fraction: float, seed: int) -> Tensor:
    """Mark the points that are trained on; the others are held out.

    Args:
        shape: of the grid.
        split: ``all`` points, ``every`` stride-th along each axis, or a ``random`` fraction of them.
        stride: for ``every``.
        fraction: for ``random``.
        seed: for ``random``.

    Returns:
        bool [*shape].

    Raises:
        ValueError: if the stride leaves an axis with one point, or the fraction a part with none.
    """
    if split == "all":
        return torch.ones(*shape, dtype=torch.bool)
    mask = torch.zeros(*shape, dtype=torch.bool)
    if split == "every":
        if stride >= min(shape):
            raise ValueError(
                f"`stride` must be less than {min(shape)}, the shortest axis of the grid {list(shape)}, so that each "
                f"keeps at least two points, got {stride}"
            )
        mask[(slice(None, None, stride),) * len(shape)] = True
        return mask
    points = mask.numel()
    kept = round(fraction * points)
    if not 0 < kept < points:
        raise ValueError(f"`train_fraction`={fraction} of {points} points is {kept}; both parts need at least one")
    mask.view(-1)[torch.randperm(points, generator=torch.Generator().manual_seed(seed))[:kept]] = True
    return mask

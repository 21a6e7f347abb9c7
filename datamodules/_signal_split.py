"""Which points of a grid are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pl_robust._number import check_count, check_finite

Split: TypeAlias = Literal["all", "every", "random"]


def check_split(split: Split, stride: int, fraction: float) -> None:
    """Refuse a split that no signal has.

    Raises:
        TypeError: if a number is none.
        ValueError: if the split is none of the three, or its number leaves no points to hold out or to train on.
    """
    if split not in get_args(Split):
        raise ValueError(f"`split` must be one of {', '.join(get_args(Split))}, got {split!r}")
    check_count(stride, "stride")
    if split == "every" and stride < 2:
        raise ValueError(f"`stride` must be at least 2, got {stride!r}; to train on all points set split='all'")
    check_finite(fraction, "train_fraction")
    if not 0 < fraction < 1:
        raise ValueError(
            f"`train_fraction` must lie in (0, 1), got {fraction!r}; to train on all points set split='all'"
        )


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
        ValueError: if an axis is too short for a stride, or left with one point, or the fraction leaves a part with
            none.
    """
    if split == "all":
        return torch.ones(*shape, dtype=torch.bool)
    mask = torch.zeros(*shape, dtype=torch.bool)
    if split == "every":
        if min(shape) < 3:
            raise ValueError(
                f"split='every' needs at least 3 points along each axis, got a grid {list(shape)}: 'random' holds out "
                "points of any signal with 2"
            )
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

"""Which nodes are trained on, validated and tested on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pl_robust.datamodules._graph_seed import seeded


class Masks(NamedTuple):
    """Three disjoint parts of the nodes, bool [N] each."""

    train: Tensor
    val: Tensor
    test: Tensor


def random_split(y: Tensor, num_classes: int, train_fraction: float, val_fraction: float, seed: int) -> Masks:
    """Split as published, but for a real share of validation nodes; the rest is tested on.

    Vignac, Ortiz-Jimenez, Frossard, "On the choice of graph neural network architectures", ICASSP 2020: of N nodes in C
    classes each class gives int(train_fraction N / C) + 1 training nodes; where the smallest class has fewer,
    int(train_fraction N) of all nodes are drawn instead.

    Args:
        y: labels, int64 [N].
        num_classes: C.
        train_fraction: in (0, 1).
        val_fraction: in [0, 1), of all nodes.
        seed: of the draw.

    Raises:
        ValueError: if a class gets no training node, or a part no node.
    """
    nodes = len(y)
    order = torch.randperm(nodes, generator=seeded(seed, "split"))
    shares = y[order]
    each = int(train_fraction * nodes / num_classes) + 1
    chosen = torch.zeros(nodes, dtype=torch.bool)  # in the drawn order
    if each <= int(torch.bincount(y, minlength=num_classes).min()):
        for label in range(num_classes):
            chosen[(shares == label).nonzero()[:each, 0]] = True
    else:
        chosen[: int(train_fraction * nodes)] = True
    train, rest = order[chosen], order[~chosen]
    num_val = round(val_fraction * nodes)
    masks = Masks(*(_mask(nodes, part) for part in (train, rest[:num_val], rest[num_val:])))
    if val_fraction and not num_val:
        raise ValueError(f"`val_fraction`={val_fraction} of {nodes} nodes is none: raise it, or set 0 to go without")
    if num_val >= len(rest):
        raise ValueError(
            f"{len(train)} training and {num_val} validation nodes of {nodes} leave none to test: lower "
            f"`train_fraction`={train_fraction} or `val_fraction`={val_fraction}"
        )
    return masks


def public_split(
    train: Tensor | None, val: Tensor | None, test: Tensor | None, nodes: int, val_fraction: float, seed: int
) -> Masks:
    """Take the split that comes with the data; draw what it leaves open.

    Without a validation mask a ``val_fraction`` of all nodes is drawn from those that are in no other; without a test
    mask all that are left are tested on. Of several splits, [N, S], ``seed`` is the index.

    Args:
        train: bool [N] or [N, S].
        val: likewise, or None.
        test: likewise, or None.
        nodes: N.
        val_fraction: in [0, 1).
        seed: of the draw, or index of the split.

    Raises:
        TypeError: if a mask is not bool.
        ValueError: if there is none, shapes do not fit, masks overlap or a part has no node.
    """
    if train is None:
        raise ValueError("split='public' needs the data's own `train_mask`, this has none: set split='random'")
    given = {"train_mask": train, "val_mask": val, "test_mask": test}
    masks = {name: _column(mask, name, nodes, seed) for name, mask in given.items() if mask is not None}
    taken = torch.stack(list(masks.values())).sum(0)
    if taken.max() > 1:
        names = [name for name, mask in masks.items() if (mask & (taken > 1)).any()]
        raise ValueError(
            f"{' and '.join(names)} must not overlap, got {int((taken > 1).sum())} nodes in more than one of them"
        )
    if "val_mask" not in masks:
        free = (taken == 0).nonzero()[:, 0]
        drawn = free[torch.randperm(len(free), generator=seeded(seed, "split"))][: round(val_fraction * nodes)]
        masks["val_mask"] = _mask(nodes, drawn)
    if "test_mask" not in masks:
        masks["test_mask"] = ~(masks["train_mask"] | masks["val_mask"])
    for name in ("train_mask", "test_mask") + (("val_mask",) if val is not None else ()):
        if not masks[name].any():
            raise ValueError(f"`{name}` must hold nodes, it has none: set split='random'")
    return Masks(masks["train_mask"], masks["val_mask"], masks["test_mask"])


def check_classes(y: Tensor, train: Tensor, num_classes: int) -> None:
    """Refuse a split in which nothing is to be learned of a class.

    Raises:
        ValueError: if a class has no training node.
    """
    missing = (torch.bincount(y[train], minlength=num_classes) == 0).nonzero()[:, 0].tolist()
    if missing:
        raise ValueError(
            f"each of the {num_classes} classes needs training nodes, {missing[:8]} of y have none in "
            f"{int(train.sum())}: raise `train_fraction`, take another `seed`, or number the classes without gaps"
        )


def _column(mask: Tensor, name: str, nodes: int, seed: int) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"`{name}` must be bool, got {mask.dtype}")
    if mask.ndim not in (1, 2) or len(mask) != nodes:
        raise ValueError(f"`{name}` must be [{nodes}], a bool for each node, got {list(mask.shape)}")
    if mask.ndim == 1:
        return mask
    if seed >= mask.shape[1]:
        raise ValueError(
            f"`seed` must be at most {mask.shape[1] - 1}, the index of one of the {mask.shape[1]} public splits, got "
            f"{seed}"
        )
    return mask[:, seed]


def _mask(nodes: int, chosen: Tensor) -> Tensor:
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[chosen] = True
    return mask

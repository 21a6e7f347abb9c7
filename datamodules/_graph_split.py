"""Which nodes are trained on, validated and tested on."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pl_robust._number import check_finite
from pl_robust.datamodules._graph_seed import seeded


class Masks(NamedTuple):
    """Three disjoint parts of the nodes, bool [N] each."""

    train: Tensor
    val: Tensor
    test: Tensor


def check_fractions(train_fraction: object, val_fraction: object, split: Literal["random", "public"]) -> None:
    """Refuse shares of nodes that are none, or leave no node to test.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is out of range, or for a random split their sum.
    """
    train, val = check_finite(train_fraction, "train_fraction"), check_finite(val_fraction, "val_fraction")
    if not 0 < train < 1:
        raise ValueError(f"`train_fraction` must be in (0, 1), got {train_fraction!r}")
    if not 0 <= val < 1:
        raise ValueError(f"`val_fraction` must be in [0, 1), got {val_fraction!r}")
    if split == "random" and train + val >= 1:
        raise ValueError(
            f"`train_fraction` + `val_fraction` must be less than 1, so that nodes to test are left, got "
            f"{train_fraction!r} + {val_fraction!r}"
        )


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
    num_val = _count_val(val_fraction, nodes)
    masks = Masks(*(_mask(nodes, part) for part in (train, rest[:num_val], rest[num_val:])))
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
        ValueError: if there is none, shapes do not fit, masks overlap, a part has no node, or too few nodes are left.
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
        num_val, to_test = _count_val(val_fraction, nodes), int(test is None)
        if num_val and num_val + to_test > len(free):
            raise ValueError(
                f"`val_fraction`={val_fraction} of {nodes} nodes is {num_val}, and {len(free)} are in none of the "
                f"masks {' and '.join(masks)}{', of which one is to be left to test' if to_test else ''}: lower "
                "`val_fraction`, set 0 to go without, or split='random'"
            )
        drawn = free[torch.randperm(len(free), generator=seeded(seed, "split"))][:num_val]
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
            f"{int(train.sum())}: number the classes without gaps; for split='random' raise `train_fraction` or take "
            "another `seed`, or set it instead of 'public'"
        )


def _count_val(val_fraction: float, nodes: int) -> int:
    count = round(val_fraction * nodes)
    if val_fraction and not count:
        raise ValueError(f"`val_fraction`={val_fraction} of {nodes} nodes is none: raise it, or set 0 to go without")
    return count


def _column(mask: object, name: str, nodes: int, seed: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`{name}` must be a bool tensor, got {got}")
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

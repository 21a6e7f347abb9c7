"""What a loop needs of a graph: the tensors for the network, and the nodes that the loop is about."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pl_robust._kept import Kept

Split: TypeAlias = Literal["train", "val", "test"]


class NodeBatch(NamedTuple):
    """A graph, and some of its nodes.

    Attributes:
        inputs: features, edges and their weights (or None), for the network.
        nodes: int64 [M], the nodes that the loop is about.
        y: int64 [M], their labels.
    """

    inputs: tuple[Tensor, Tensor, Tensor | None]
    nodes: Tensor
    y: Tensor


class NodeBatchReader:
    """Takes batches apart; for tensors that come again it looks at their numbers once.

    A mask on a GPU holds up the program where its nodes are looked for, and so does a check of the labels.

    Args:
        num_classes: C; labels are to lie in [0, C).
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._nodes: dict[str, Kept] = {split: Kept() for split in ("train", "val", "test")}

    def read(self, batch: Any, split: Split) -> NodeBatch:
        """Take a batch of a split apart.

        Args:
            batch: torch_geometric Data; the nodes are those of its mask, or the first ``batch_size`` if it has that.
            split: which of them.

        Raises:
            TypeError: if it is of another kind, or a tensor has another type.
            ValueError: if something is missing, no node is of the split, or a label is no class.
        """
        inputs = take_inputs(batch)
        y = batch.get("y")
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1 or len(y) != len(batch.x):
            got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"a batch must have labels y, int64 [{len(batch.x)}], got {got}")
        if "batch_size" in batch:
            nodes, labels = self._first(batch.batch_size, y, split)
        else:
            name = f"{split}_mask"
            mask = batch.get(name)
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != y.shape:
                got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(
                    f"a batch must have `{name}`, bool [{len(y)}], or `batch_size`, whose first nodes are meant then, "
                    f"got {got}"
                )
            nodes, labels = self._nodes[split](lambda mask, y: self._chosen(mask, y, split), mask, y)
        return NodeBatch(inputs, nodes, labels)

    def _chosen(self, mask: Tensor, y: Tensor, split: Split) -> tuple[Tensor, Tensor]:
        nodes = mask.nonzero()[:, 0]
        labels = y[nodes]
        self._check(labels, split)
        return nodes, labels

    def _first(self, count: int, y: Tensor, split: Split) -> tuple[Tensor, Tensor]:
        labels = y[:count]
        if not len(labels) or y.device.type == "cpu":  # on a GPU a look at each sample's labels would wait for it
            self._check(labels, split)
        return torch.arange(len(labels), device=y.device), labels

    def _check(self, labels: Tensor, split: Split) -> None:
        if not len(labels):
            raise ValueError(f"the {split} split has no node: there must be one in its mask, or `batch_size` above 0")
        least, most = (int(value) for value in labels.aminmax())
        if least < 0 or most >= self._num_classes:
            raise ValueError(
                f"labels of the {split} split must lie in 0 to {self._num_classes - 1}, as `num_classes` is "
                f"{self._num_classes}, got {least} to {most}"
            )


def take_inputs(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the tensors for the network: features, edges and their weights (or None).

    The batch's own, as they come: networks keep what they computed of them.

    Raises:
        TypeError: if the batch is of another kind.
        ValueError: if it has no features or edges.
    """
    from torch_geometric.data import Data  # takes seconds, which no other module should wait for

    if not isinstance(batch, Data):
        raise TypeError(
            "a batch must be a torch_geometric.data.Data with x, edge_index, y and masks, got "
            f"{type(batch).__name__}; GraphDataModule makes such batches"
        )
    for name in ("x", "edge_index"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"a batch must have `{name}`, a tensor, got {type(batch.get(name)).__name__}")
    return batch.x, batch.edge_index, batch.get("edge_weight")

"""Samples of neighbours, of graphs that do not fit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pl_robust.datamodules._graph_seed import seeded

_WHERE = "https://data.pyg.org/whl, for your version of PyTorch"


def check_neighbors(neighbors: Any) -> None:
    """Refuse what are no numbers of neighbours, and to sample where PyG cannot.

    Raises:
        TypeError: if it is no list.
        ValueError: if something in it is neither a positive integer nor -1.
        ImportError: if neither pyg-lib nor torch-sparse is installed.
    """
    if not isinstance(neighbors, list | tuple) or not neighbors:
        raise TypeError(f"`neighbors` must be a list of numbers, one for each hop, got {neighbors!r}")
    for number in neighbors:
        if number != -1 and not (isinstance(number, int) and not isinstance(number, bool) and number > 0):
            raise ValueError(f"`neighbors` must hold positive integers, or -1 for all, got {neighbors!r}")
    from torch_geometric import typing

    if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
        raise ImportError(
            f"`neighbors` needs pyg-lib or torch-sparse, from {_WHERE}; without `neighbors` the whole graph is a batch"
        )


class NeighborBatches:
    """Subgraphs around some nodes at a time: PyG's NeighborLoader, whose samplers Lightning cannot replace.

    Args:
        graph: a torch_geometric Data.
        neighbors: how many to sample at each hop; -1: all.
        nodes: the nodes around which to sample, int64.
        batch_size: how many of them at a time; they are the first ones of a batch.
        order: None, or the seed and the rank of the shuffling, and what tells the epoch.
    """

    def __init__(
        self,
        graph: Any,
        neighbors: list[int],
        nodes: Tensor,
        batch_size: int,
        order: tuple[int, int, Callable[[], int]] | None = None,
    ) -> None:
        from torch_geometric.loader import NeighborLoader

        self._order = order
        self._generator = torch.Generator()
        self._loader = NeighborLoader(
            graph,
            num_neighbors=neighbors,
            input_nodes=nodes,
            batch_size=batch_size,
            shuffle=order is not None,
            generator=self._generator,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._order is not None:
            seed, rank, epoch = self._order
            self._generator.set_state(seeded(seed, "order", rank, epoch()).get_state())
        return iter(self._loader)


def share(nodes: Tensor, rank: int, ranks: int) -> Tensor:
    """Take a rank's share of the training nodes; all get equally many, as DDP needs it, some of them twice."""
    each = -(-len(nodes) // ranks)
    return nodes[torch.arange(rank * each, (rank + 1) * each) % len(nodes)]

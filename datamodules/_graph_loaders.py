"""Loaders for graphs: tokens that stand for the whole graph, and samples of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pl_robust.datamodules._graph_seed import seeded

_WHERE = "https://data.pyg.org/whl, for your version of PyTorch"


class WholeGraph(NamedTuple):
    """The one batch of an evaluation over the whole graph."""

    loop: Literal["val", "test", "predict"]


class GraphLoader:
    """A loader of the one batch; a list of it would be taken for a list of loaders."""

    def __init__(self, token: WholeGraph) -> None:
        self.token = token

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[WholeGraph]:
        yield self.token


def check_sampler() -> None:
    """Refuse to sample where PyG cannot.

    Raises:
        ImportError: if neither pyg-lib nor torch-sparse is installed.
    """
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

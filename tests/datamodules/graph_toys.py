"""Small graphs for the datamodule, and a module that trains on one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust._lightning import LightningModule

with warnings.catch_warnings():  # of torch.jit on the newest torch; it sets an environment variable, too
    warnings.simplefilter("ignore")
    import torch_geometric.nn  # noqa: F401

from torch_geometric.data import Data

from pl_robust.models import SGC


def pairs_graph(**attributes: Any) -> Data:
    """Twelve nodes in two classes: a ring, and a node 11 without edges; features are 4 one-hot columns."""
    nodes = torch.arange(11)
    ring = torch.stack([nodes, (nodes + 1) % 11])
    x = F.one_hot(torch.arange(12) % 4).float()
    graph = Data(x=x, edge_index=torch.cat([ring, ring.flip(0)], dim=1), y=torch.arange(12) % 2)
    for name, value in attributes.items():
        graph[name] = value
    return graph


def mask(*nodes: int, count: int = 12) -> Tensor:
    """The nodes as a mask."""
    marked = torch.zeros(count, dtype=torch.bool)
    marked[list(nodes)] = True
    return marked


class GraphModule(LightningModule):
    """Trains SGC on the training nodes, and remembers what the loops handed it."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.net = SGC(in_features, num_classes)
        self.batches: list[Any] = []
        self.evaluated: list[Any] = []

    def _loss(self, batch: Any, chosen: Tensor) -> Tensor:
        return F.cross_entropy(self.net(batch.x, batch.edge_index, batch.edge_weight)[chosen], batch.y[chosen])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        return self._loss(batch, batch.train_mask)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated.append(batch)
        self.log("val/loss", self._loss(batch, batch.val_mask), batch_size=1, sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated.append(batch)
        self.log("test/loss", self._loss(batch, batch.test_mask), batch_size=1, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits: Tensor = self.net(batch.x, batch.edge_index, batch.edge_weight)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)

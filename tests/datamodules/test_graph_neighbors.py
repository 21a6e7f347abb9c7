"""Samples of neighbours, of graphs that do not fit the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pl_robust.datamodules import GraphDataModule
from pl_robust.datamodules._graph_neighbors import share
from pl_robust.models import GCN
from tests.datamodules.graph_toys import GraphModule
from tests.toys import quiet_trainer

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib'"),  # where torch-sparse is
]


def _can_sample() -> bool:
    from torch_geometric import typing

    return bool(typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE)


needs_sampler = pytest.mark.skipif(not _can_sample(), reason="needs pyg-lib or torch-sparse")
SMALL: Any = {"sbm_nodes": 200, "sbm_classes": 2, "sbm_features": 6, "sbm_degree": 4.0}


def test_without_a_sampler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric import typing

    monkeypatch.setattr(typing, "WITH_PYG_LIB", False)
    monkeypatch.setattr(typing, "WITH_TORCH_SPARSE", False)
    with pytest.raises(ImportError, match="`neighbors` needs pyg-lib or torch-sparse, from https"):
        GraphDataModule(neighbors=[5, 5])


@pytest.mark.parametrize(("count", "ranks"), [(7, 1), (7, 2), (8, 2), (2, 3), (5, 4)])
def test_ranks_share_the_training_nodes_in_equal_numbers(count: int, ranks: int) -> None:
    nodes = torch.arange(100, 100 + count)
    parts = [share(nodes, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert set(torch.cat(parts).tolist()) == set(nodes.tolist())
    assert ranks * len(parts[0]) - count < ranks


@needs_sampler
def test_evaluation_is_that_of_the_whole_graph() -> None:
    data = GraphDataModule(neighbors=[3, 3], batch_size=32, **SMALL)
    net = GCN(6, 2, 8).eval()
    whole = net(data.graph.x, data.graph.edge_index)
    parts: list[Tensor] = []
    for batch in data.predict_dataloader():
        parts.append(net(batch.x, batch.edge_index, batch.edge_weight)[: batch.batch_size])
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    seen = torch.cat([batch.n_id[: batch.batch_size] for batch in data.test_dataloader()])
    assert torch.equal(seen, data.graph.test_mask.nonzero()[:, 0])


@needs_sampler
def test_training_batches_are_around_all_training_nodes_in_an_order_of_the_epoch() -> None:
    data = GraphDataModule(neighbors=[3, 3], batch_size=32, **SMALL)
    epochs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        loader: Any = data.train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == -(-data.num_train // 32)
        assert all(batch.train_mask[: batch.batch_size].all() for batch in batches)
        epochs.append(torch.cat([batch.n_id[: batch.batch_size] for batch in batches]))
    assert torch.equal(epochs[0], epochs[1])  # without a Trainer, the first epoch's
    assert torch.equal(epochs[0].sort()[0], data.graph.train_mask.nonzero()[:, 0])
    assert not torch.equal(epochs[0], epochs[0].sort()[0])


@needs_sampler
def test_the_trainer_trains_on_them() -> None:
    data = GraphDataModule(neighbors=[3, 3], batch_size=40, **SMALL)
    module = GraphModule(data.in_features, data.num_classes)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2 * len(data.train_dataloader())
    orders = [torch.cat([batch.n_id[:2] for batch in half]) for half in (module.batches[:3], module.batches[3:])]
    assert not torch.equal(*orders)
    assert sum(batch.batch_size for batch in module.evaluated[1:]) >= int(data.graph.val_mask.sum())


@needs_sampler
def test_they_are_in_the_trainers_precision() -> None:
    data = GraphDataModule(neighbors=[3, 3], batch_size=40, **SMALL)
    module = GraphModule(data.in_features, data.num_classes)
    quiet_trainer(max_epochs=1, precision="64-true").fit(module, datamodule=data)
    assert {batch.x.dtype for batch in (*module.batches, *module.evaluated)} == {torch.float64}
    assert data.graph.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("neighbors", "error"),
    [
        (5, TypeError),
        ([], TypeError),
        ([0], ValueError),
        ([5, -2], ValueError),
        ([2.5], ValueError),
        ([True], ValueError),
    ],
)
def test_refuses_what_are_no_numbers_of_neighbours(neighbors: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`neighbors` must (be a list of numbers|hold positive integers, or -1 for all)"):
        GraphDataModule(neighbors=neighbors)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from pl_robust._dataloaders import count_real, flatten_loaders


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("samples", "ranks"), [(7, 2), (8, 2), (101, 3), (2, 4)])
def test_over_all_ranks_each_sample_counts_once(samples: int, ranks: int, shuffle: bool) -> None:
    dataset: Any = TensorDataset(torch.arange(samples))
    counted = []
    for rank in range(ranks):
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, ranks, rank, shuffle=shuffle)
        loader = DataLoader(dataset, batch_size=3, sampler=sampler)
        for index, (batch,) in enumerate(loader):
            counted += batch[: count_real(loader, index, len(batch))].tolist()
    assert sorted(counted) == list(range(samples))


def test_a_batch_sampler_of_the_users_own_counts_likewise() -> None:
    dataset: Any = TensorDataset(torch.arange(7))
    counted = []
    for rank in range(2):
        batches = BatchSampler(DistributedSampler(dataset, 2, rank, shuffle=False), 3, drop_last=False)
        loader = DataLoader(dataset, batch_sampler=batches)
        for index, (batch,) in enumerate(loader):
            counted += batch[: count_real(loader, index, len(batch))].tolist()
    assert sorted(counted) == list(range(7))


def test_without_a_distributed_sampler_all_count() -> None:
    assert count_real(DataLoader(TensorDataset(torch.arange(5)), batch_size=3), 1, 2) == 2
    assert count_real([1, 2], 0, 5) == 5


def test_loaders_come_in_the_order_of_their_index() -> None:
    a, b, c = (DataLoader(TensorDataset(torch.arange(n))) for n in (1, 2, 3))
    assert flatten_loaders(None) == []
    assert flatten_loaders(a) == [a]
    assert flatten_loaders({"x": a, "y": [b, c]}) == [a, b, c]

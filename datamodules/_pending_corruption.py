"""Corruptions done on the device: loaders whose batches know each image's index, and what is still to be done to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pl_robust._batch import replace_entry, take_entry
from pl_robust.transforms._corruptions.tables import TableName
from pl_robust.transforms.corruption import corrupt, table_for


class CorruptLater:
    """Give each batch of an indexed loader the corruption that is to be done to it.

    Args:
        name: of the corruption.
        severity: 1 to 5.
        table: which constants; ``None``: those for images of this size.
        input_key: where a batch has its images; a batch that is a tensor is the images.
    """

    def __init__(self, name: str, severity: int, table: TableName | None, input_key: int | str) -> None:
        self.name = name
        self.severity = severity
        self.table = table
        self.input_key = input_key

    def __call__(self, indexed: tuple[Tensor, Any]) -> PendingCorruption:
        """Take what ``indexed_loader`` collates."""
        index, batch = indexed
        return PendingCorruption(batch, index, self)

    def images(self, batch: Any) -> Tensor:
        """Take the images out of a batch."""
        return batch if isinstance(batch, Tensor) else take_entry(batch, self.input_key)

    def corrupt(self, batch: Any, index: Tensor) -> Any:
        """Copy a batch with its images corrupted, where they lie; the seed of each is its index in its data set."""
        x = self.images(batch)
        table = table_for(x.shape) if self.table is None else self.table
        seeds = index.to(x.device, non_blocking=x.is_cuda)  # else the host would wait for the device
        y = corrupt(x, self.name, self.severity, table=table, seeds=seeds)
        return y if isinstance(batch, Tensor) else replace_entry(batch, self.input_key, y)


class PendingCorruption:
    """A batch on its way to the device, where its images will be corrupted.

    Moved with ``to``, as a Trainer does, it becomes the corrupted batch. Read without that, ``x, y = pending``, it is
    the corrupted batch as well.

    Args:
        batch: as the base's loader collates it.
        index: int64 [B], of each image in its data set.
        how: what is to be done.
    """

    def __init__(self, batch: Any, index: Tensor, how: CorruptLater) -> None:
        self.batch = batch
        self.index = index
        self.how = how

    def check(self) -> None:
        """Refuse images outside [0, 1], from which the corruptions would make something else.

        Raises:
            ValueError: if there are.
        """
        x = self.how.images(self.batch)
        if x.is_floating_point() and len(x) and not ((x >= 0) & (x <= 1)).all():
            raise ValueError(
                f"images must lie in [0, 1] to be corrupted, got values from {float(x.min()):.3g} to "
                f"{float(x.max()):.3g}; leave it to the network to normalize them (models.Normalize), or to the base's "
                "on_after_batch_transfer, which comes behind the corruption"
            )

    def to(self, device: torch.device | str) -> Any:
        """Move the batch and corrupt it there."""
        return self.how.corrupt(apply_to_collection(self.batch, Tensor, lambda tensor: tensor.to(device)), self.index)

    def pin_memory(self) -> PendingCorruption:
        """Pin the batch, as a DataLoader with ``pin_memory`` asks for."""
        return PendingCorruption(apply_to_collection(self.batch, Tensor, Tensor.pin_memory), self.index, self.how)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.how.corrupt(self.batch, self.index))

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, key: Any) -> Any:
        return self.how.corrupt(self.batch, self.index)[key]


def indexed_loader(loader: Any, in_order: bool = False) -> DataLoader[Any]:
    """Make a loader of the same batches, each behind the indices of its samples: (int64 [B], batch).

    Args:
        loader: a torch DataLoader that makes batches of the samples of a data set with indices.
        in_order: go through the data set from its first to its last sample, instead of as the loader does.

    Raises:
        TypeError: if it is none of torch's loaders, or its data set has no indices.
        ValueError: if the data set makes the batches itself (``batch_size=None``).
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"images can be corrupted that come from a torch DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "the index of an image in its data set is the seed of its corruption, and an IterableDataset has none "
            f"({type(loader.dataset).__name__}); give the base a data set with __getitem__ and __len__"
        )
    if loader.batch_sampler is None:
        raise ValueError(
            "the index of an image in its data set is the seed of its corruption, and a DataLoader with "
            "batch_size=None knows those of whole batches only; let the DataLoader make the batches"
        )
    batches: dict[str, Any]
    if in_order:
        batches = {"batch_size": loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)}
    elif loader.batch_size is not None:
        batches = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    else:
        batches = {"batch_sampler": loader.batch_sampler}
    return DataLoader(  # workers that live on would add up, one set for each of 75 loaders
        _IndexedDataset(loader.dataset),
        collate_fn=_IndexedCollate(loader.collate_fn),  # type: ignore[arg-type]  # of what __getitems__ gives
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        **batches,
    )


class _IndexedDataset(Dataset[Any]):
    """A data set that hands out, of many samples asked for at once, their indices and the samples."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Sequence[int], Any]:
        fetch = getattr(self.dataset, "__getitems__", None)
        return indices, [self.dataset[index] for index in indices] if fetch is None else fetch(indices)


class _IndexedCollate:
    """A loader's own ``collate_fn`` behind the indices; at module level, so that worker processes can unpickle it."""

    def __init__(self, collate_fn: Any) -> None:
        self.collate_fn = collate_fn

    def __call__(self, indexed: tuple[Sequence[int], Any]) -> tuple[Tensor, Any]:
        indices, samples = indexed
        return torch.as_tensor(indices), self.collate_fn(samples)

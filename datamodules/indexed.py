"""Data whose batches tell which samples they hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pl_robust._batch import replace_entry
from pl_robust._lightning import LightningDataModule, unsavable
from pl_robust.datamodules._indexed_dataset import IndexedBatch, index_loader
from pl_robust.datamodules._wrapper import DataModuleWrapper

_KEY = "index"


class IndexedDataModule(DataModuleWrapper):
    """Another datamodule's batches, each with the positions of its samples: int64 [B].

    What follows single samples through training needs them: ``LearningDynamics``, and the cache of ``AKDStudent``. Put
    it around any other datamodule: ``IndexedDataModule(ImageDataModule("cifar10"))``. In training, validation and test

    * tuples and lists get one element more at their end: (x, y) becomes (x, y, index), a training step that unpacks
      its batch says ``x, y, *_ = batch``;
    * dicts get the key ``"index"``;
    * a batch that is a bare tensor becomes (x, index).

    Predict batches stay as they are. A position is the index by which the loader asks its data set for the sample,
    0 … N - 1: of a Subset its own, not that of the data set behind it; of a ConcatDataset that in the whole. It holds
    for every sampler (Lightning's distributed ones, too), batch sampler and ``collate_fn``, in worker processes, and
    for data sets that make batches themselves (``__getitems__``). A ``collate_fn`` that leaves samples out or
    multiplies them gives batches whose samples are not those of the positions.

    The base keeps its own say: its loaders, hooks and state are used as they are, it sees the same trainer, and a
    loader it does not have stays missing. Its loaders are copied, not changed.

    Args:
        base: the wrapped datamodule; its loaders must be torch DataLoaders (alone, or in lists and dicts) of data sets
            with ``__getitem__``.

    Raises:
        TypeError: if ``base`` is no datamodule; later, if a loader is no torch DataLoader, its data is iterable, its
            sampler gives no integers, or its batches are of a kind that cannot hold one thing more.
        ValueError: at the first batch, if it is a dict that has an ``"index"`` already.
    """

    _way_out = "give out the samples' positions in its data set instead"

    def __init__(self, base: LightningDataModule) -> None:
        super().__init__(base)
        self.save_hyperparameters(ignore=unsavable(base=base), logger=False)

    def predict_dataloader(self) -> Any:
        """The base's predict batches, as they are."""
        return self.base.predict_dataloader()

    def _transform(self) -> Callable[[IndexedBatch], Any]:
        return _append

    def _change(self, loader: DataLoader[Any], transform: Callable[[Any], Any]) -> None:
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError(
                f"samples of an IterableDataset ({type(loader.dataset).__name__}) have no positions: give `base` a "
                "data set with __getitem__ and __len__"
            )
        index_loader(loader, transform)


def _append(indexed: IndexedBatch) -> Any:
    """Put the indices into their batch; at module level, so that worker processes can unpickle it."""
    indices, batch = indexed
    if isinstance(batch, Tensor):
        return batch, indices
    if isinstance(batch, Mapping):
        if _KEY in batch:
            raise ValueError(
                f"the batch has an entry {_KEY!r} already, of keys {list(batch)}: take that one, without "
                "IndexedDataModule, or give it another name in the loader's `collate_fn`"
            )
        return replace_entry(batch, _KEY, indices)
    if isinstance(batch, list):
        batch = copy.copy(batch)
        batch.append(indices)
        return batch
    if type(batch) is tuple:
        return (*batch, indices)
    raise TypeError(
        "the samples' positions can be added to batches that are tuples, lists, dicts or tensors, got "
        f"{type(batch).__name__}; let the loader's `collate_fn` give one of these"
    )

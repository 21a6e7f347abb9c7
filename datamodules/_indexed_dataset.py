"""Batches that know which samples of the data set they were made of, whatever makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class IndexedBatch(NamedTuple):
    """A batch, or the samples it will be made of, behind their positions in the data set."""

    indices: Any
    batch: Any


class IndexedDataset(Dataset[Any]):
    """A data set that hands out the samples of many indices together with these.

    Everything else is the data set's own: attributes are read and written there, also by ``worker_init_fn``.

    Args:
        dataset: the data set with ``__getitem__``.
    """

    _inner: Any

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_inner", dataset)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: Any) -> Any:
        """One sample as it is; of a list of indices, which a loader with ``batch_size=None`` may ask for, both."""
        samples = self._inner[index]
        return IndexedBatch(index, samples) if isinstance(index, list | tuple | Tensor | np.ndarray) else samples

    def __getitems__(self, indices: Sequence[Any]) -> IndexedBatch:
        """The indices, and what the data set gives for them: a list of samples, or a batch that it has made itself."""
        fetch = getattr(self._inner, "__getitems__", None)
        return IndexedBatch(indices, [self._inner[index] for index in indices] if fetch is None else fetch(indices))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":  # asked for while it is being unpickled
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)


class IndexedCollate:
    """A loader's own ``collate_fn``, then ``attach``; at module level, so that worker processes can unpickle it.

    Args:
        collate_fn: the loader's own.
        attach: (indices int64 [B], collated batch) -> batch.
    """

    def __init__(self, collate_fn: Callable[[Any], Any], attach: Callable[[IndexedBatch], Any]) -> None:
        self.collate_fn = collate_fn
        self.attach = attach

    def __call__(self, samples: Any) -> Any:
        if not isinstance(samples, IndexedBatch):
            raise TypeError(
                f"the loader asks its data set for whole batches (batch_size=None), or makes the data set itself: got "
                f"{type(samples).__name__} without the samples' indices; let a torch DataLoader make the batches"
            )
        return self.attach(IndexedBatch(_as_indices(samples.indices), self.collate_fn(samples.batch)))


def index_loader(loader: DataLoader[Any], attach: Callable[[IndexedBatch], Any]) -> None:
    """Let a loader attach the indices of its samples to its batches. It is changed: give a copy.

    Args:
        loader: a loader of a data set with ``__getitem__``.
        attach: as in ``IndexedCollate``.
    """
    before = loader.dataset
    after = IndexedDataset(before)
    # Past the loader's own ban on a change. And Lightning keeps a record of how it was made, from which it makes the
    # loader anew with another sampler: the data set must be this one there, too.
    for name, value in vars(loader).items():
        if value is before:
            vars(loader)[name] = after
        elif isinstance(value, dict) and any(part is before for part in value.values()):
            vars(loader)[name] = {key: after if part is before else part for key, part in value.items()}
        elif isinstance(value, tuple) and any(part is before for part in value):
            vars(loader)[name] = tuple(after if part is before else part for part in value)
    loader.collate_fn = IndexedCollate(loader.collate_fn, attach)


def _as_indices(indices: Any) -> Tensor:
    """Make int64 [B] of what a sampler gives.

    Raises:
        TypeError: if these are no integers.
    """
    try:
        tensor = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0, 0)
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(
            f"a sampler must give the positions of samples, integers, got {list(indices)[:3]}; give the loader one "
            "that does, or add what tells the samples apart to the batches in its data set"
        )
    return tensor.long()

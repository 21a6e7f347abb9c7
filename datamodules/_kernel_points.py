"""The inputs of a datamodule's splits as the points of one kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pl_robust._batch import take_entry
from pl_robust.datamodules._pending_corruption import indexed_loader


class KernelPoints(NamedTuple):
    """Inputs, each once.

    Attributes:
        x: [N, ...], on the CPU.
        rows: split -> for each of its loaders, where in ``x`` each sample of its data set stands, int64.
        digests: split -> a checksum of all its samples in their order.
    """

    x: Tensor
    rows: dict[str, list[Tensor]]
    digests: dict[str, str]


def read_points(splits: Mapping[str, Sequence[Any]], input_key: int | str) -> KernelPoints:
    """Read the inputs of dataloaders, in the order of their data sets.

    A sample that an earlier loader has, too, is the same point: validation data may be part of the training data, or
    be the test data. Equal samples within one data set are points of their own.

    Args:
        splits: name -> dataloaders.
        input_key: where a batch has its inputs.

    Raises:
        TypeError: if a loader is no torch DataLoader over a data set with indices.
        ValueError: if samples differ in shape or dtype.
    """
    known: dict[bytes, int] = {}
    kept: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {}
    digests: dict[str, str] = {}
    count = 0
    for split, loaders in splits.items():
        rows[split] = []
        total = hashlib.sha256()
        for loader in loaders:
            check_indexed(loader, split)
            here: dict[bytes, int] = {}
            places: list[int] = []
            for _, batch in indexed_loader(loader, in_order=True):
                x = (batch if isinstance(batch, Tensor) else take_entry(batch, input_key)).cpu()
                if kept and (x.shape[1:] != kept[0].shape[1:] or x.dtype != kept[0].dtype):
                    raise ValueError(
                        f"the inputs of all splits must be alike, got {x.dtype} {list(x.shape[1:])} in the {split} "
                        f"data behind {kept[0].dtype} {list(kept[0].shape[1:])}"
                    )
                fresh: list[int] = []
                for position, sample in enumerate(_digest(x)):
                    total.update(sample)
                    place = known.get(sample)
                    if place is None:
                        place = count
                        here.setdefault(sample, place)
                        fresh.append(position)
                        count += 1
                    places.append(place)
                kept.append(x[fresh])
            known = {**here, **known}
            rows[split].append(torch.tensor(places, dtype=torch.int64))
        digests[split] = total.hexdigest()
    return KernelPoints(torch.cat(kept) if kept else torch.zeros(0), rows, digests)


def check_indexed(loader: Any, split: str) -> None:
    """Refuse a loader that does not tell which sample is which.

    Raises:
        TypeError: saying why.
    """
    reason = None
    if not isinstance(loader, DataLoader):
        reason = f"a {type(loader).__name__}"
    elif isinstance(loader.dataset, IterableDataset):
        reason = f"a DataLoader over an IterableDataset ({type(loader.dataset).__name__})"
    elif loader.batch_sampler is None:
        reason = "a DataLoader with batch_size=None, whose data set makes the batches"
    if reason is not None:
        raise TypeError(
            f"each sample gets its label by its index, so the {split} data of `base` must come from torch DataLoaders "
            f"that make batches of a data set with __getitem__ and __len__, got {reason}"
        )


def _digest(x: Tensor) -> list[bytes]:
    """A checksum of each sample, of so many bits that different samples never share one."""
    rows = x.reshape(len(x), -1).contiguous().view(torch.uint8).numpy()  # as bytes: NumPy lacks bfloat16
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]

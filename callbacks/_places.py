"""Which images of an evaluation count, and where they stand."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from pl_robust._dataloaders import loader_names
from pl_robust._lightning import MisconfigurationException, Trainer


class Places:
    """Where the images of a rank stand among all images that are evaluated: their seeds, and which of them count.

    An image's place is its index in the data set. Where there is none (iterable data), or a sampler of the user's own
    picks them, it is its place in the order in which they come.

    Args:
        loader: the rank's dataloader, as the trainer holds it.
        trainer: the trainer.
        max_samples: how many images count on all ranks together; None means all.

    Raises:
        MisconfigurationException: if the loader shuffles.
    """

    def __init__(self, loader: Any, trainer: Trainer, max_samples: int | None) -> None:
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
        if _is_shuffled(sampler) or not getattr(loader, "in_order", True):
            raise MisconfigurationException(
                "an image's corruption is drawn from its place among the evaluation images, and the dataloader "
                f"shuffles them ({type(sampler).__name__}): give it shuffle=False"
            )
        self._start, self._step, limit = 0, 1, max_samples
        if isinstance(sampler, DistributedSampler):
            self._start, self._step = sampler.rank, sampler.num_replicas
            if not sampler.drop_last:  # behind the last image stand repeated ones, until all ranks have equally many
                size = len(sampler.dataset)  # type: ignore[arg-type]  # Dataset has no len
                limit = size if limit is None else min(limit, size)
        elif isinstance(getattr(loader, "dataset", None), IterableDataset):
            self._start, self._step = trainer.global_rank, trainer.world_size
        self._own = None if limit is None else len(range(self._start, limit, self._step))
        self._seen = 0

    def take(self, size: int) -> range:
        """Take the next batch: the places of those of its first images that count."""
        first = self._start + self._step * self._seen
        real = size if self._own is None else max(0, min(size, self._own - self._seen))
        self._seen += size
        return range(first, first + self._step * real, self._step)


def _is_shuffled(sampler: Any) -> bool:
    if isinstance(sampler, DistributedSampler):
        # Lightning's own wraps the user's sampler.
        return sampler.shuffle or _is_shuffled(getattr(sampler.dataset, "_sampler", None))
    return isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)


def find_loader(loaders: Any, wanted: int | str) -> int:
    """Find a dataloader among the trainer's by its index or name, and give its index.

    Raises:
        MisconfigurationException: if there is none; it names those there are.
    """
    names = loader_names(loaders)
    if wanted in names:
        return names.index(str(wanted))
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return wanted
    there = ", ".join(repr(index if name is None else name) for index, name in enumerate(names)) or "none"
    raise MisconfigurationException(
        f"`loader` must be the index or the name of one of the dataloaders of this evaluation, {there}, got {wanted!r}"
    )

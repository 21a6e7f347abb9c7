"""What Lightning does to dataloaders, undone where it matters: their nesting, and the samples DDP repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data.distributed import DistributedSampler


def uncombined(loaders: Any) -> Any:
    """Take the dataloaders out of what Lightning wraps around them; others come back as they are."""
    # By name: Lightning has the classes once in each of its namespaces.
    kind = type(loaders).__name__
    if kind == "CombinedLoader":
        return loaders.iterables if hasattr(loaders, "iterables") else loaders.loaders  # Lightning 1.9
    if kind == "CycleIterator":  # Lightning 1.9, around each of several
        return loaders.loader
    return loaders


def flatten_loaders(loaders: Any) -> list[Any]:
    """List the dataloaders of a trainer's ``val_dataloaders`` or ``test_dataloaders`` in the order of their index."""
    if loaders is None:
        return []
    if isinstance(loaders, Mapping):
        return [loader for part in loaders.values() for loader in flatten_loaders(part)]
    if isinstance(loaders, list | tuple):
        return [loader for part in loaders for loader in flatten_loaders(part)]
    inner = uncombined(loaders)
    return [loaders] if inner is loaders else flatten_loaders(inner)


def loader_names(loaders: Any) -> list[str | None]:
    """Name the same dataloaders by the keys of the dict they come in, ``"key"`` or ``"key/0"``; None without a dict."""
    loaders = uncombined(loaders)
    if not isinstance(loaders, Mapping):
        return [None] * len(flatten_loaders(loaders))
    names: list[str | None] = []
    for key, part in loaders.items():
        parts = flatten_loaders(part)
        names += [str(key)] if parts == [part] else [f"{key}/{index}" for index in range(len(parts))]
    return names


def count_real(loader: Any, batch_idx: int, size: int) -> int:
    """Count the samples at the head of a batch that are no repeats.

    ``DistributedSampler`` appends repeated samples until every rank has equally many, which would count them twice in
    an accuracy. They stand behind all others, so that position alone tells them.

    Args:
        loader: the dataloader of this rank, as the trainer holds it.
        batch_idx: index of the batch in this rank's epoch.
        size: number of samples in the batch.

    Returns:
        How many of the batch's first samples count, 0 to ``size``.
    """
    # A batch sampler of the user's own holds the sampler that counts; the loader's is a default then.
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    batch_size = getattr(batches, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or batch_size is None:
        return size
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]  # Dataset has no len
    return max(0, min(size, own - batch_idx * int(batch_size)))

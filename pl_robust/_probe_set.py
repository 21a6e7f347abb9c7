"""A fixed set of validation samples that observers look at again and again, shared out among the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pl_robust._batch import split_batch
from pl_robust._dataloaders import flatten_loaders
from pl_robust._lightning import MisconfigurationException, Trainer

CHUNK = 64
"""Samples looked at together. Each chunk has its own noise, so that no figure depends on the number of ranks."""


def probe_set(
    trainer: Trainer, max_samples: int, input_key: str | int, label_key: str | int
) -> tuple[int, list[tuple[int, Tensor, Tensor]]]:
    """Read the first samples of the first validation dataloader, as validation would see them.

    Collation, the precision's conversion and the batch-transfer hooks of module and datamodule are applied. Map-style
    data sets are read by index: rank r takes every world-size-th chunk. Iterable ones are read through the loader: each
    rank takes its own first samples.

    Args:
        trainer: a trainer that is fitting.
        max_samples: how many samples to read on all ranks together.
        input_key: position or key of the inputs in a batch.
        label_key: position or key of the labels in a batch.

    Returns:
        The number of chunks on all ranks together; and this rank's chunks as (index, inputs, labels), on the CPU.

    Raises:
        MisconfigurationException: if the trainer has no validation data.
    """
    stage = trainer.state.stage
    # Transforms for training must pass the probe set by: while it is read, the trainer says what it says in validation.
    trainer.validating = True
    try:
        if trainer.val_dataloaders is None and trainer.enable_validation:  # no validation has run yet
            _load_validation_data(trainer)
        loaders = flatten_loaders(trainer.val_dataloaders)
        if not loaders:
            raise MisconfigurationException(
                "the probe set is taken from the validation data, and this run has none: give the Trainer a validation "
                "dataloader, or the callback `probe_data=(x, y)`"
            )
        return _read(trainer, loaders[0], max_samples, input_key, label_key)
    finally:
        trainer.state.stage = stage


def _load_validation_data(trainer: Trainer) -> None:
    """Have the trainer load its validation dataloaders, as it does itself before the first validation."""
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    if hasattr(val_loop, "setup_data"):
        val_loop.setup_data()
    else:  # Lightning 1.9
        trainer.reset_val_dataloader(trainer.lightning_module)  # type: ignore[attr-defined]


def _read(
    trainer: Trainer, loader: Any, max_samples: int, input_key: str | int, label_key: str | int
) -> tuple[int, list[tuple[int, Tensor, Tensor]]]:
    rank, ranks = trainer.global_rank, trainer.world_size
    dataset = getattr(loader, "dataset", None)
    by_index = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    if by_index and getattr(loader, "batch_sampler", None) is not None:
        count = min(max_samples, len(dataset))  # type: ignore[arg-type]  # by_index says that it has a length
        chunks = [list(range(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK)]
        mine = list(range(rank, len(chunks), ranks))
        batches: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]  # by_index says that it can be indexed
            batch_sampler=[chunks[i] for i in mine],
            collate_fn=loader.collate_fn,
        )
        pairs = [split_batch(_transfer(trainer, batch), input_key, label_key) for batch in batches]
        return len(chunks), [(i, x.cpu(), y.cpu()) for i, (x, y) in zip(mine, pairs, strict=True)]
    wanted = -(-max_samples // ranks)
    x, y = _first(trainer, loader, wanted, input_key, label_key)
    own = -(-wanted // CHUNK)
    parts = zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)
    return ranks * own, [(rank * own + i, *part) for i, part in enumerate(parts)]


def _first(
    trainer: Trainer, loader: Any, wanted: int, input_key: str | int, label_key: str | int
) -> tuple[Tensor, Tensor]:
    def read() -> Iterator[tuple[Tensor, Tensor]]:
        missing = wanted
        for batch in loader:
            x, y = split_batch(_transfer(trainer, batch), input_key, label_key)
            yield x[:missing].cpu(), y[:missing].cpu()
            missing -= len(y)
            if missing <= 0:
                return

    pairs = list(read())
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _transfer(trainer: Trainer, batch: Any) -> Any:
    # Tensor by tensor: Lightning 1.9 converts no collections.
    batch = apply_to_collection(batch, Tensor, trainer.precision_plugin.convert_input)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

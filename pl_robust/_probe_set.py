"""A fixed set of validation samples that observers look at again and again, shared out among the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pl_robust._batch import split_batch
from pl_robust._dataloaders import flatten_loaders
from pl_robust._generators import kept_generators
from pl_robust._lightning import LightningModule, MisconfigurationException, Trainer
from pl_robust._probe import probe

CHUNK = 64
"""Samples looked at together. Each chunk has its own noise, so that no figure depends on the number of ranks."""


class ProbeSet:
    """The first samples of the first validation dataloader, as validation sees them, on the CPU.

    Data sets that can be indexed are read when training starts, in the batches of the dataloader's own sampler; random
    numbers drawn on the way, also from generators that are attributes of loader, data set, datamodule or module, are
    put back. Iterable data, and loaders that do more than load, cannot be read without moving them: their samples are
    kept when validation passes them, and the set is ready after the first validation.

    Args:
        max_samples: how many samples to keep on all ranks together.
        input_key: position or key of the inputs in a batch.
        label_key: position or key of the labels in a batch.
        given: (inputs, labels) to take instead of validation data.

    Attributes:
        chunks: number of chunks on all ranks together, 0 until it is ready.
        mine: this rank's chunks as (index, inputs, labels).
    """

    def __init__(
        self, max_samples: int, input_key: str | int, label_key: str | int, given: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.max_samples = max_samples
        self.keys = (input_key, label_key)
        self.given = given
        self.chunks = 0
        self.mine: list[tuple[int, Tensor, Tensor]] = []
        self._waits = False
        self._kept: list[tuple[Tensor, Tensor]] = []

    def read(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the samples, or get ready to keep those that validation passes.

        Raises:
            MisconfigurationException: if the run has no validation data.
        """
        self.chunks, self.mine, self._kept, self._waits = 0, [], [], False
        if self.given is not None:
            parts = list(zip(*(torch.split(part[: self.max_samples], CHUNK) for part in self.given), strict=True))
            self.chunks = len(parts)
            self.mine = [(i, *parts[i]) for i in range(trainer.global_rank, len(parts), trainer.world_size)]
            return
        parts = [part for owned in module.modules() for part in vars(owned).values()]
        with probe(module), kept_generators([trainer.datamodule, *parts], depth=4):  # type: ignore[attr-defined]
            loader = _first_loader(trainer)
            with kept_generators([loader]):
                self._waits = not _can_be_indexed(trainer, loader)
                if not self._waits:
                    self._read_by_index(trainer, loader)

    def _read_by_index(self, trainer: Trainer, loader: DataLoader[Any]) -> None:
        # The loader's own batches, because it may know which samples can be stacked.
        batches: list[list[int]] = []
        for indices in loader.batch_sampler or ():
            batches.append(list(indices)[: self.max_samples - sum(map(len, batches))])
            if sum(map(len, batches)) >= self.max_samples:
                break
        batches = trainer.strategy.broadcast(batches)
        chunks = [batch[start : start + CHUNK] for batch in batches for start in range(0, len(batch), CHUNK)]
        mine = list(range(trainer.global_rank, len(chunks), trainer.world_size))
        # In a worker if the loader has workers: files that the data set opens must not be open before the fork.
        reader: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=[chunks[i] for i in mine],
            collate_fn=loader.collate_fn,
            num_workers=min(1, loader.num_workers),
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        stage = trainer.state.stage
        # Transforms for training must pass the probe set by: the trainer says what it says in validation.
        trainer.validating = True
        try:
            pairs = [split_batch(_transfer(trainer, batch), *self.keys) for batch in reader]
        finally:
            trainer.state.stage = stage
        self.mine = [(i, x.cpu(), y.cpu()) for i, (x, y) in zip(mine, pairs, strict=True)]
        self.chunks = len(chunks)

    def keep(self, trainer: Trainer, batch: Any, dataloader_idx: int) -> None:
        """Keep a batch that validation passes, if iterable data makes that necessary and there is room."""
        wanted = -(-self.max_samples // trainer.world_size)
        missing = wanted - sum(len(y) for _, y in self._kept)
        if self._waits and self.chunks == 0 and dataloader_idx == 0 and missing > 0:
            x, y = split_batch(batch, *self.keys)
            self._kept.append((x[:missing].clone().cpu(), y[:missing].clone().cpu()))

    def close(self, trainer: Trainer) -> None:
        """Make chunks of what was kept, at the end of a validation."""
        if not self._waits or self.chunks or not self._kept:
            return
        x, y = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        wanted = -(-self.max_samples // trainer.world_size)
        own = -(-wanted // CHUNK)
        parts: Sequence[tuple[Tensor, Tensor]] = list(zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True))
        self.mine = [(trainer.global_rank * own + i, *part) for i, part in enumerate(parts)]
        self.chunks = own * trainer.world_size


def _can_be_indexed(trainer: Trainer, loader: Any) -> bool:
    """Tell whether reading by index gives what iterating gives, on every rank the same."""
    plain = (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )
    length = len(loader.dataset) if plain and hasattr(loader.dataset, "__len__") else -1
    lengths = [
        int(trainer.strategy.reduce(torch.tensor(length, device=trainer.strategy.root_device), reduce_op=operation))
        for operation in ("min", "max")
    ]
    return lengths[0] == lengths[1] >= 0


def _first_loader(trainer: Trainer) -> Any:
    """The first validation dataloader as the user made it, before Lightning gives it a sampler of its own.

    It is asked for anew: if Lightning's own request came earlier than without the observer, the random numbers that the
    user draws on the way would be others.
    """
    val_loop: Any = trainer.fit_loop.epoch_loop.val_loop
    source = getattr(val_loop, "_data_source", None)
    if source is None:  # Lightning 1.9
        source = trainer._data_connector._val_dataloader_source  # type: ignore[attr-defined]
    loaders = flatten_loaders(source.dataloader()) if source.instance is not None and source.is_defined() else []
    if not loaders:
        raise MisconfigurationException(
            "the probe set is taken from the validation data, and this run has none: give the Trainer a validation "
            "dataloader, or the callback `probe_data=(x, y)`"
        )
    return loaders[0]


def _transfer(trainer: Trainer, batch: Any) -> Any:
    # Tensor by tensor: Lightning 1.9 converts no collections.
    batch = apply_to_collection(batch, Tensor, trainer.precision_plugin.convert_input)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

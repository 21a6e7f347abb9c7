"""A user's datamodule to wrap, collations of all kinds, and a module that keeps what it is handed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from pl_robust._lightning import LightningDataModule, LightningModule


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


def to_list(samples: Any) -> list[Tensor]:
    return list(default_collate(samples))


def to_namedtuple(samples: Any) -> Pair:
    return Pair(*default_collate(samples))


def to_dict(samples: Any) -> dict[str, Any]:
    x, y = default_collate(samples)
    return {"name": "batch", "image": x, "label": y}


def to_ordered(samples: Any) -> OrderedDict[str, Any]:
    return OrderedDict(to_dict(samples))


def to_frozen(samples: Any) -> MappingProxyType[str, Any]:
    return MappingProxyType(to_dict(samples))


class Base(LightningDataModule):
    """A user's datamodule: one loader that it keeps, no predict loader, hooks and state of its own."""

    def __init__(self, collate: Callable[[Any], Any] = default_collate, workers: int = 0, labels: int = 4) -> None:
        super().__init__()
        self.x = torch.rand(20, 3, 8, 8)
        self.y = torch.arange(20) % labels
        self.calls: list[tuple[str, str | None]] = []
        keep = workers > 0
        self.loader: Any = DataLoader(
            TensorDataset(self.x, self.y), 8, collate_fn=collate, num_workers=workers, persistent_workers=keep
        )

    def prepare_data(self) -> None:
        self.calls.append(("prepare_data", None))

    def setup(self, stage: str | None = None) -> None:
        self.calls.append(("setup", stage))

    def teardown(self, stage: str | None = None) -> None:
        self.calls.append(("teardown", stage))

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return [self.loader, self.loader]

    def test_dataloader(self) -> Any:
        return {"a": self.loader, "b": [self.loader]}


class WithClasses(Base):
    num_classes = 4


class Recorder(LightningModule):
    """Keeps what the loops hand it, and has a batch hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches: list[Any] = []
        self.hooked = 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.hooked += 1
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        mean: Tensor = batch[0].mean()
        return self.scale * mean

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)

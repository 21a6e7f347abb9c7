"""Images in files, whatever the layout: a data set that reads them when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Source(Protocol):
    """Where images are read from."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """Read some of the images: uint8 [len(indices), C, H, W]."""


class StoredImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of one corruption and severity, read when they are asked for; batches come collated.

    Args:
        source: of the images.
        labels: int64 [N].
    """

    def __init__(self, source: Source, labels: Tensor) -> None:
        self.source = source
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample: float32 [C, H, W] in [0, 1] and int64 []."""
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch: float32 [B, C, H, W] in [0, 1] and int64 [B]."""
        # A division, as in ImageDataset: multiplying by 1/255 rounds twice.
        return self.source.read(indices).to(torch.float32).div_(255), self.labels[torch.as_tensor(indices)]

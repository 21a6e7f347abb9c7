"""A data set that hands out whole batches: no Python loop over images that are already decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate


class Source(Protocol):
    """Where images are read from when they are asked for."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """Read some of the images: uint8 [len(indices), C, H, W]."""


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator | None = None) -> Tensor:
    """Shift each image of a batch by up to ``padding`` pixels, and mirror half of them.

    The same as zero-padding, a random crop of the old size and a horizontal flip with probability 1/2, drawn for each
    image; done for the batch at once by one gather.

    Args:
        images: [B, C, H, W], any dtype.
        padding: pixels of zeros put on every side.
        flip: whether to mirror.
        generator: source of randomness; ``None``: torch's global one, which DataLoader seeds in each worker.
    """
    batch, channels, height, width = images.shape
    rows = torch.randint(2 * padding + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * padding + 1, (batch, 1), generator=generator) + torch.arange(width)
    if flip:
        mirrored = torch.rand((batch, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    return padded.gather(2, places.view(batch, 1, -1).expand(-1, channels, -1)).view(images.shape)


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images kept as uint8, given out as float32 in [0, 1].

    ``dataset[i]`` is one sample. DataLoader and Subset ask for many indices at once (``__getitems__``) and get a batch
    that is already collated; give such a loader ``collate_fn=collate_images``.

    Args:
        images: uint8 [N, C, H, W], or files that are read on request.
        labels: int64 [N].
        levels: the stored value that stands for 1.0: 255, or 16 for the digits.
        padding: of the random crop, 0 for none.
        flip: whether to mirror at random.
    """

    def __init__(
        self, images: Tensor | Source, labels: Tensor, levels: int = 255, padding: int = 0, flip: bool = False
    ) -> None:
        self.images = images
        self.labels = labels
        self.levels = levels
        self.padding = padding
        self.flip = flip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample: float32 [C, H, W] in [0, 1] and int64 []."""
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch: float32 [B, C, H, W] in [0, 1] and int64 [B]."""
        chosen = torch.as_tensor(indices)
        images = self.images.index_select(0, chosen) if isinstance(self.images, Tensor) else self.images.read(indices)
        if self.padding or self.flip:
            images = crop_and_flip(images, self.padding, self.flip)
        # A division, as torchvision's ToTensor: multiplying by 1/255 rounds twice.
        return images.to(torch.float32).div_(self.levels), self.labels[chosen]


def collate_images(batch: Any) -> Any:
    """Pass a batch of ``ImageDataset`` on as it is; collate a list of samples, which a data set around it may give."""
    return batch if isinstance(batch, tuple) else default_collate(batch)

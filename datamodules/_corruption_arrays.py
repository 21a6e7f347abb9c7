"""Corrupted images as CIFAR-10-C and CIFAR-100-C keep them: one ``.npy`` file per corruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_robust.datamodules._corruption_manifest import verify
from pl_robust.datamodules._image_dataset import ImageDataset

LABELS = "labels.npy"
SEVERITIES = 5


class ArraySlice:
    """One severity's part of a ``.npy`` file, mapped into memory anew in each process that reads it."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.start = start
        self._array: np.ndarray[Any, Any] | None = None

    def read(self, indices: Sequence[int]) -> Tensor:
        """Read some of the images: uint8 [len(indices), C, H, W]."""
        if self._array is None:
            self._array = open_array(self.path)
        images = torch.from_numpy(self._array[np.asarray(indices) + self.start])
        return images.permute(0, 3, 1, 2).contiguous()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_array": None}  # pickled, a memory map is a copy of the file


class CorruptionArrays:
    """The layout of CIFAR-10-C: ``<name>.npy``, uint8 [5 * n, H, W, C], and ``labels.npy``, severity after severity.

    Args:
        folder: of the files.
        names: of the corruptions that are to be used.
        severities: that are to be used, of 1 to 5; the files hold all of them.
    """

    def __init__(self, folder: Path, names: Sequence[str], severities: Sequence[int]) -> None:
        self.folder = folder
        self.names = names
        self.severities = severities

    def check(self, num_classes: int | None) -> None:
        """Check all that is to be used: that it is there, of the right kind, and, with a manifest, what was written.

        Args:
            num_classes: of the clean data, if it is known.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if one is not as described.
        """
        labels = self._labels()
        if num_classes is not None and self.num_classes > num_classes:
            raise ValueError(
                f"{self.folder / LABELS} must hold labels 0 to {num_classes - 1}, for the clean data has {num_classes} "
                f"classes, got {self.num_classes - 1}"
            )
        for name in self.names:
            array = self._open(name)
            if len(array) != SEVERITIES * len(labels):
                raise ValueError(
                    f"{self._path(name)} must hold {SEVERITIES * len(labels)} images, as many as {LABELS} has labels, "
                    f"got {len(array)}"
                )
            channels, height, width = self.image_shape
            if array.shape[1:] != (height, width, channels):
                raise ValueError(
                    f"{self._path(name)} must hold images {height}x{width}x{channels}, as {self.names[0]}.npy does, "
                    f"got {list(array.shape)}"
                )
        verify(self.folder, (LABELS, *(f"{name}.npy" for name in self.names)))

    def dataset(self, name: str, severity: int) -> ImageDataset:
        """Give the images of one corruption and severity."""
        labels = self._labels()
        return ImageDataset(ArraySlice(self._path(name), (severity - 1) * len(labels)), labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, as far as the labels tell."""
        return int(self._labels().max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self._open(self.names[0]).shape
        return channels, height, width

    def _open(self, name: str) -> np.ndarray[Any, Any]:
        array = open_array(self._path(name))
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
            raise ValueError(
                f"{self._path(name)} must hold uint8 images [5 * n, H, W, 1 or 3], "
                f"got {array.dtype} {list(array.shape)}"
            )
        return array

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            there = ", ".join(sorted(other.stem for other in self.folder.glob("*.npy") if other.name != LABELS))
            raise FileNotFoundError(
                f"{path} is missing, {self.folder} holds {there or 'no corruption'}; "
                "`pl-robust corrupt` writes such files"
            )
        return path

    def _labels(self) -> Tensor:
        """The labels of one severity, int64 [n]."""
        path = self.folder / LABELS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the labels of all images, severity after severity")
        array = open_array(path)
        if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) % SEVERITIES or not len(array):
            raise ValueError(
                f"{path} must hold integers [5 * n], the labels of n images for each severity, "
                f"got {array.dtype} {list(array.shape)}"
            )
        parts = array.reshape(SEVERITIES, -1).astype(np.int64)
        differing = np.flatnonzero((parts != parts[0]).any(1))
        if len(differing):
            raise ValueError(
                f"{path} must hold the same labels for each severity, {parts.shape[1]} at a time, but those of "
                f"severity {int(differing[0]) + 1} differ from those of severity 1"
            )
        if parts.min() < 0:
            raise ValueError(f"{path} must hold labels from 0 on, got {int(parts.min())}")
        return torch.from_numpy(parts[0].copy())


def open_array(path: Path) -> np.ndarray[Any, Any]:
    """Map a ``.npy`` file into memory, without pickle.

    Raises:
        ValueError: if it is none, or incomplete.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"{path} is no complete .npy file of numbers: {error}") from error

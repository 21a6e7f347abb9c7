"""Corrupted images as ImageNet-C and Tiny-ImageNet-C keep them: a folder per corruption, severity and class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from pl_robust.datamodules._image_dataset import ImageDataset


class FolderSlice:
    """The images of one corruption and severity, decoded on request.

    Args:
        folder: of the corruption and severity.
        files: of the images, from there; the same list for all of them.
        shape: (C, H, W) that each must have.
    """

    def __init__(self, folder: Path, files: Sequence[str], shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.files = files
        self.shape = shape

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode some of the images: uint8 [len(indices), 3, H, W].

        Raises:
            ValueError: if one has another size than the first.
        """
        batch = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for place, index in enumerate(indices):
            path = self.folder / self.files[index]
            with Image.open(path) as opened:
                pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
            if pixels.shape != self.shape:
                raise ValueError(
                    f"{path} must have the size of the first image, {self.shape[1:]}, got {tuple(pixels.shape[1:])}"
                )
            batch[place] = pixels
        return batch


class CorruptionFolders:
    """The layout of ImageNet-C: ``[<group>/]<name>/<severity>/<class>/*``; each part has the same classes and files.

    Args:
        folder: of the groups or the corruptions.
        names: of the corruptions that are to be used.
        severities: that are to be used, of 1 to 5.
        classes: names of the clean data's classes in their order; ``None``: those of the first part, sorted.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], severities: Sequence[int], classes: Sequence[str] | None = None
    ) -> None:
        self.folder = folder
        self.names = names
        self.severities = severities
        self._classes = classes
        self._files: list[str] = []  # one list for all parts, of which there may be 95
        self._labels = torch.empty(0, dtype=torch.int64)

    def check(self, num_classes: int | None) -> None:
        """Check that each corruption and severity that is to be used has the same classes and files.

        Args:
            num_classes: of the clean data, if it is known.

        Raises:
            FileNotFoundError: if a folder or an image is missing.
            ValueError: if there is a class or an image that does not belong there.
        """
        classes = self.classes
        if num_classes not in (None, len(classes)):
            raise ValueError(
                f"{self._part(self.names[0], self.severities[0])} must have {num_classes} class folders, as many "
                f"as the clean data has classes, got {len(classes)}"
            )
        first: list[str] = []
        for name in self.names:
            for severity in self.severities:
                part = self._part(name, severity)
                files = _list_images(part, classes)
                unknown = sorted({*_folders(part)} - {*classes})
                if unknown:
                    raise ValueError(f"{part} has classes that are not expected there: {', '.join(unknown)}")
                first = first or files
                if files != first:
                    other = self._part(self.names[0], self.severities[0])
                    missing, surplus = sorted({*first} - {*files}), sorted({*files} - {*first})
                    what = f"{missing[0]} is missing" if missing else f"{surplus[0]} is not there"
                    raise FileNotFoundError(f"{part} must hold the images that {other} holds, but {what}")
        places = {label: place for place, label in enumerate(classes)}
        self._labels = torch.tensor([places[file.partition("/")[0]] for file in first])
        self._files = first

    def dataset(self, name: str, severity: int) -> ImageDataset:
        """Give the images of one corruption and severity, after ``check``."""
        return ImageDataset(FolderSlice(self._part(name, severity), self._files, self.image_shape), self._labels)

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes: class k is the k-th of them."""
        if self._classes is None:
            self._classes = _folders(self._part(self.names[0], self.severities[0]))
        return self._classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W); the first file tells it."""
        part = self._part(self.names[0], self.severities[0])
        with Image.open(part / _list_images(part, self.classes[:1])[0]) as image:  # reads the header only
            return 3, image.height, image.width

    def _part(self, name: str, severity: int) -> Path:
        found = [path for path in (self.folder / name, *sorted(self.folder.glob(f"*/{name}"))) if path.is_dir()]
        if not found:
            raise FileNotFoundError(
                f"{self.folder} has neither {name}.npy nor a folder {name}/<severity>/<class>/, "
                f"itself or in a folder such as noise/; it holds {', '.join(_folders(self.folder)) or 'no folder'}"
            )
        if len(found) > 1:
            raise ValueError(f"{name} must be in one place, got {' and '.join(map(str, found))}")
        part = found[0] / str(severity)
        if not part.is_dir():
            raise FileNotFoundError(f"{part} is missing; {found[0]} holds {', '.join(_folders(found[0])) or 'nothing'}")
        return part


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


def _list_images(part: Path, classes: Sequence[str]) -> list[str]:
    """List the images of all classes as ``<class>/<file>``.

    Raises:
        FileNotFoundError: if a class has no folder or no image.
    """
    files: list[str] = []
    for name in classes:
        if not (part / name).is_dir():
            raise FileNotFoundError(f"{part / name} is missing: a folder with the images of class {name!r}")
        found = sorted(entry.name for entry in os.scandir(part / name))
        images = [file for file in found if file.lower().endswith(IMG_EXTENSIONS)]
        if not images:
            raise FileNotFoundError(f"{part / name} must hold images, {', '.join(IMG_EXTENSIONS)}, and holds none")
        files += [f"{name}/{file}" for file in images]
    return files

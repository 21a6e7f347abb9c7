"""Where the images of ``ImageDataModule`` come from: scikit-learn, torchvision's files, or folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as vision

ImageName: TypeAlias = Literal["digits", "cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "imagefolder"]


class ImageSpec(NamedTuple):
    """What is known of a data set before it is read; ``levels`` is the stored value that stands for 1.0."""

    num_classes: int
    shape: tuple[int, int, int]
    padding: int  # of the random crop
    flip: bool  # whether a mirrored image is still of its class
    levels: int = 255


SPECS = {
    "digits": ImageSpec(10, (1, 8, 8), padding=1, flip=False, levels=16),
    "cifar10": ImageSpec(10, (3, 32, 32), padding=4, flip=True),
    "cifar100": ImageSpec(100, (3, 32, 32), padding=4, flip=True),
    "svhn": ImageSpec(10, (3, 32, 32), padding=4, flip=False),
    "mnist": ImageSpec(10, (1, 28, 28), padding=4, flip=False),
    "fashion_mnist": ImageSpec(10, (1, 28, 28), padding=4, flip=True),
}
FOLDER_PADDING = 4


def torchvision_dataset(name: str, data_dir: str, train: bool, download: bool) -> Any:
    """Open one of torchvision's data sets; it checks its files, and fetches them if ``download``."""
    if name == "svhn":
        return datasets.SVHN(data_dir, split="train" if train else "test", download=download)
    kinds = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
    }
    return kinds[name](data_dir, train=train, download=download)


def read_named(name: str, data_dir: str, train: bool) -> tuple[Tensor, Tensor]:
    """Read a data set that has a name of its own.

    Returns:
        Images, uint8 [N, C, H, W], and labels, int64 [N].

    Raises:
        FileNotFoundError: if its files are not in ``data_dir``, or damaged.
    """
    if name == "digits":
        return _digits(train)
    try:
        dataset = torchvision_dataset(name, data_dir, train, download=False)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"`data_dir`={data_dir!r} holds no complete {name} data ({error}); with `download=True` the Trainer's "
            "call of prepare_data() fetches it, or copy the files there as torchvision names them"
        ) from error
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif name != "svhn":  # torchvision keeps SVHN as [N, C, H, W] and CIFAR as [N, H, W, C]
        images = images.permute(0, 3, 1, 2)
    labels = dataset.labels if name == "svhn" else dataset.targets
    return images.contiguous(), torch.as_tensor(labels, dtype=torch.int64)


def _digits(train: bool) -> tuple[Tensor, Tensor]:
    """1797 digits of 8x8 pixels with levels 0 to 16: 1300 to train, 497 to test, the same for everybody."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    split = train_test_split(np.arange(len(digits.target)), test_size=497, stratify=digits.target, random_state=0)
    chosen = torch.from_numpy(np.sort(split[0 if train else 1]))
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    return images[chosen], torch.from_numpy(digits.target).to(torch.int64)[chosen]


def folder_classes(data_dir: str) -> list[str]:
    """Names of the folders in ``data_dir/train``, sorted: class k is the k-th of them.

    Raises:
        FileNotFoundError: if there is no such folder, or none in it.
    """
    root = Path(data_dir) / "train"
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    if not classes:
        raise FileNotFoundError(
            f"an imagefolder needs {root}/<class>/<image> and found no class folder there; "
            f"`data_dir`={data_dir!r} must be the folder that holds train/ and test/"
        )
    return classes


class FolderImages:
    """The images of one split of an imagefolder, decoded on request.

    Args:
        data_dir: folder that holds ``train/<class>/*``, ``test/<class>/*`` and perhaps ``val/<class>/*``.
        split: which of them.
        image_size: resize the shorter side to this many pixels and crop the centre; ``None``: as the files are.

    Attributes:
        labels: int64 [N].
        shape: (3, H, W) of every image; the first file tells it if ``image_size`` does not.

    Raises:
        FileNotFoundError: if the folder is missing or holds no image.
        ValueError: if the split has a class that the training images do not have.
    """

    def __init__(self, data_dir: str, split: str, image_size: int | None) -> None:
        classes = folder_classes(data_dir)
        root = Path(data_dir) / split
        if not root.is_dir():
            raise FileNotFoundError(f"an imagefolder keeps its {split} images in {root}/<class>/, which does not exist")
        unknown = sorted({entry.name for entry in root.iterdir() if entry.is_dir()} - set(classes))
        if unknown:
            raise ValueError(f"{root} has classes that {data_dir}/train has not: {unknown}; remove or rename them")
        self.files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(str(p) for p in (root / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
            self.files += found
            labels += [label] * len(found)
        if not self.files:
            raise FileNotFoundError(f"{root} has no image in its class folders; readable are {IMG_EXTENSIONS}")
        self.labels = torch.tensor(labels)
        self.image_size = image_size
        if image_size is None:
            with Image.open(self.files[0]) as image:  # reads the header only
                self.shape = (3, image.height, image.width)
        else:
            self.shape = (3, image_size, image_size)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode some of the images: uint8 [len(indices), 3, H, W].

        Raises:
            ValueError: if one has another size than the first, and no ``image_size`` was given.
        """
        batch = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for place, index in enumerate(indices):
            with Image.open(self.files[index]) as opened:
                image = opened.convert("RGB")
            if self.image_size is not None:
                size = [self.image_size]
                image = vision.center_crop(vision.resize(image, size), size)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            if pixels.shape != self.shape:
                raise ValueError(
                    f"all images must have the size of the first, {self.shape[1:]}, but {self.files[index]} has "
                    f"{tuple(pixels.shape[1:])}; give `image_size=` to resize them"
                )
            batch[place] = pixels
        return batch

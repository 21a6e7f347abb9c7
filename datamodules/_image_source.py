"""Where the images of ``ImageDataModule`` come from: scikit-learn, scikit-image, torchvision's files, or folders."""

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

from pl_robust.datamodules._scikit_image import scikit_image_data

ImageName: TypeAlias = Literal[
    "digits", "lfw", "cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "celeba", "imagefolder"
]


class ImageSpec(NamedTuple):
    """What is known of a data set before it is read; ``levels`` is the stored value that stands for 1.0."""

    num_classes: int
    shape: tuple[int, int, int]
    padding: int  # of the random crop
    flip: bool  # whether a mirrored image is still of its class
    levels: int = 255


SPECS = {
    "digits": ImageSpec(10, (1, 8, 8), padding=1, flip=False, levels=16),
    "lfw": ImageSpec(2, (1, 25, 25), padding=3, flip=True),
    "cifar10": ImageSpec(10, (3, 32, 32), padding=4, flip=True),
    "cifar100": ImageSpec(100, (3, 32, 32), padding=4, flip=True),
    "svhn": ImageSpec(10, (3, 32, 32), padding=4, flip=False),
    "mnist": ImageSpec(10, (1, 28, 28), padding=4, flip=False),
    "fashion_mnist": ImageSpec(10, (1, 28, 28), padding=4, flip=True),
    "celeba": ImageSpec(2, (3, 218, 178), padding=4, flip=True),
}
FOLDER_PADDING = 4
SHIPPED = ("digits", "lfw")  # inside packages: nothing to fetch
FILES = ("celeba", "imagefolder")  # decoded one by one
_CELEBA_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_CELEBA_LABEL = "Smiling"


def torchvision_dataset(name: str, data_dir: str, split: str, download: bool) -> Any:
    """Open one of torchvision's data sets; it checks its files, and fetches them if ``download``.

    Args:
        name: of the data set.
        data_dir: folder of its files.
        split: ``train``, ``test``, or ``val``, which only celeba has.
        download: whether to fetch what is missing.

    Raises:
        FileNotFoundError: if the files are not there, or damaged, and not to be fetched.
    """
    kinds = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
    }
    try:
        if name == "svhn":
            return datasets.SVHN(data_dir, split=split, download=download)
        if name == "celeba":
            return datasets.CelebA(data_dir, split=_CELEBA_SPLITS[split], download=download)
        return kinds[name](data_dir, train=split == "train", download=download)
    except RuntimeError as error:
        if download:
            raise
        raise FileNotFoundError(
            f"`data_dir`={data_dir!r} holds no complete {name} data ({error}); with `download=True` the Trainer's "
            "call of prepare_data() fetches it, or copy the files there as torchvision names them"
        ) from error


def read_named(name: str, data_dir: str, train: bool) -> tuple[Tensor, Tensor]:
    """Read a data set that has a name of its own and fits in memory.

    Returns:
        Images, uint8 [N, C, H, W], and labels, int64 [N].

    Raises:
        FileNotFoundError: if its files are not in ``data_dir``, or damaged.
        ImportError: if scikit-image's faces are asked for without it.
    """
    if name == "digits":
        return _digits(train)
    if name == "lfw":
        return _faces(train)
    dataset = torchvision_dataset(name, data_dir, "train" if train else "test", download=False)
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

    digits = load_digits()
    chosen = _chosen(digits.target, 497, train)
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    return images[chosen], torch.from_numpy(digits.target).to(torch.int64)[chosen]


def _faces(train: bool) -> tuple[Tensor, Tensor]:
    """200 pieces of photos, 25x25, the first 100 of them faces: 150 to train, 50 to test, the same for everybody."""
    labels = np.repeat([1, 0], 100)
    chosen = _chosen(labels, 50, train)
    images = torch.from_numpy(scikit_image_data("lfw_subset") * 255)  # floats in [0, 1]
    return images.round().to(torch.uint8).unsqueeze(1)[chosen], torch.from_numpy(labels).to(torch.int64)[chosen]


def _chosen(labels: np.ndarray[Any, Any], test_size: int, train: bool) -> Tensor:
    """Indices of one part of a stratified split, in order."""
    from sklearn.model_selection import train_test_split

    split = train_test_split(np.arange(len(labels)), test_size=test_size, stratify=labels, random_state=0)
    return torch.from_numpy(np.sort(split[0 if train else 1]))


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


class ImageFiles:
    """Images that are decoded on request.

    Args:
        files: their paths.
        labels: int64 [N].
        image_size: resize the shorter side to this many pixels and crop the centre; ``None``: as the files are.
        gray: decode their luminance alone.
        crop: first cut out the centred square of this many pixels.

    Attributes:
        shape: (C, H, W) of every image; the first file tells it if ``image_size`` does not.
    """

    def __init__(
        self, files: list[str], labels: Tensor, image_size: int | None, gray: bool, crop: int | None = None
    ) -> None:
        self.files = files
        self.labels = labels
        self.image_size = image_size
        self.mode = "L" if gray else "RGB"
        self.crop = crop
        height = width = image_size
        if height is None or width is None:
            with Image.open(files[0]) as image:  # reads the header only
                height, width = image.height, image.width
        self.shape = (1 if gray else 3, height, width)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode some of the images: uint8 [len(indices), C, H, W].

        Raises:
            ValueError: if one has another size than the first, and no ``image_size`` was given.
        """
        batch = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for place, index in enumerate(indices):
            with Image.open(self.files[index]) as opened:
                image = opened.convert(self.mode)
            if self.crop is not None:
                image = vision.center_crop(image, [self.crop])
            if self.image_size is not None:
                size = [self.image_size]
                image = vision.center_crop(vision.resize(image, size), size)
            pixels = vision.pil_to_tensor(image)
            if pixels.shape != self.shape:
                raise ValueError(
                    f"all images must have the size of the first, {self.shape[1:]}, but {self.files[index]} has "
                    f"{tuple(pixels.shape[1:])}; give `image_size=` to resize them"
                )
            batch[place] = pixels
        return batch


def folder_images(data_dir: str, split: str, image_size: int | None, gray: bool) -> ImageFiles:
    """The images of one split of an imagefolder.

    Args:
        data_dir: folder that holds ``train/<class>/*``, ``test/<class>/*`` and perhaps ``val/<class>/*``.
        split: which of them.
        image_size: as in ImageFiles.
        gray: likewise.

    Raises:
        FileNotFoundError: if the folder is missing or holds no image.
        ValueError: if the split has a class that the training images do not have.
    """
    classes = folder_classes(data_dir)
    root = Path(data_dir) / split
    if not root.is_dir():
        raise FileNotFoundError(f"an imagefolder keeps its {split} images in {root}/<class>/, which does not exist")
    unknown = sorted({entry.name for entry in root.iterdir() if entry.is_dir()} - set(classes))
    if unknown:
        raise ValueError(f"{root} has classes that {data_dir}/train has not: {unknown}; remove or rename them")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(str(p) for p in (root / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        files += found
        labels += [label] * len(found)
    if not files:
        raise FileNotFoundError(f"{root} has no image in its class folders; readable are {IMG_EXTENSIONS}")
    return ImageFiles(files, torch.tensor(labels), image_size, gray)


def celeba_images(data_dir: str, split: str, image_size: int | None, gray: bool) -> ImageFiles:
    """CelebA's aligned faces of one split; class 1 smiles.

    Args:
        data_dir: folder that holds ``celeba/``, as torchvision has it.
        split: ``train``, ``val`` or ``test``, as published.
        image_size: as in ImageFiles, of the centred square, 178 pixels wide.
        gray: as in ImageFiles.

    Raises:
        FileNotFoundError: if the files are not there, or damaged.
    """
    dataset = torchvision_dataset("celeba", data_dir, split, download=False)
    folder = Path(data_dir) / dataset.base_folder / "img_align_celeba"
    labels = dataset.attr[:, dataset.attr_names.index(_CELEBA_LABEL)].to(torch.int64)
    crop = None if image_size is None else min(SPECS["celeba"].shape[1:])
    return ImageFiles([str(folder / name) for name in dataset.filename], labels, image_size, gray, crop)

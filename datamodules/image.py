"""Image classification data: digits and faces out of packages, torchvision's sets, and folders of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms.v2 import functional as vision

from pl_robust._lightning import LightningDataModule, rank_zero_info
from pl_robust._number import check_count, check_finite, check_seed
from pl_robust.datamodules._image_dataset import ImageDataset, collate_images
from pl_robust.datamodules._image_source import (
    FILES,
    FOLDER_PADDING,
    SHIPPED,
    SPECS,
    ImageFiles,
    ImageName,
    celeba_images,
    folder_classes,
    folder_images,
    read_named,
    torchvision_dataset,
)
from pl_robust.datamodules._luminance import luminance

_MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images that one split may take unless `in_memory` says otherwise
_STAGES = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
    None: ("train", "val", "test"),
}


class ImageDataModule(LightningDataModule):
    """Loaders of ``(x, y)``: x float32 [B, C, H, W] in [0, 1], not normalized, and y int64 [B].

    Images are decoded once and kept as uint8. Training is shuffled and keeps its last, smaller batch. Validation
    images are split off the training images by ``seed``, the same on every rank; the test images are those of the
    published split, and are also what ``predict`` runs over. The digits have a fixed, stratified test set of 497 of
    1797 images, the faces of ``lfw`` one of 50 of 200, whatever ``seed`` is.

    Args:
        name: ``digits`` (8x8, 1 channel, ships with scikit-learn), ``lfw`` (25x25, 1 channel, a face or not: 1 or 0;
            ships with scikit-image), ``cifar10``, ``cifar100``, ``svhn`` (32x32, 3 channels), ``mnist``,
            ``fashion_mnist`` (28x28, 1 channel), ``celeba`` (218x178, 3 channels, a smiling face or not: 1 or 0, with
            the published validation images; its download needs gdown), or ``imagefolder``: your own images in
            ``data_dir/train/<class>/*`` and ``data_dir/test/<class>/*``, and optionally ``data_dir/val/<class>/*``,
            which is then used instead of splitting the training images.
        data_dir: folder of the files; not used by ``digits`` and ``lfw``.
        batch_size: training images per batch and per rank.
        eval_batch_size: likewise for validation, test and predict.
        val_fraction: share of the training images used for validation, in [0, 1); 0: no validation loader.
        augment: shift training images at random by up to 4 pixels (digits: 1), and mirror them where that keeps the
            class (cifar10, cifar100, fashion_mnist, imagefolder). Off by default, so that the data is what the files
            hold and a feature can be injected into it as published; turn it on to train for accuracy.
        image_size: side in pixels to which images of an imagefolder are resized (shorter side, then centre crop), of
            celeba (the centred 178x178, as published), or of digits and lfw (bilinear; the shift grows with them).
        num_workers: loader processes. Decoded images in memory need none.
        seed: of the validation split.
        in_memory: keep an imagefolder or celeba decoded; ``None``: if a split takes at most 4 GiB. All others always
            are.
        download: fetch torchvision's data if it is not in ``data_dir``; happens in ``prepare_data`` only.
        pin_memory: copy batches to pinned memory, for a GPU.
        persistent_workers: keep the workers from epoch to epoch: faster, but ``ExactResume`` cannot restore their
            random numbers then.
        gray: turn images of 3 channels into their luminance, of 1 channel.

    Attributes:
        num_classes: number of classes; before ``setup``, too.
        image_shape: (C, H, W); before ``setup``, too.

    Raises:
        TypeError: if a number is of another type.
        ValueError: if an argument is not as described.
        FileNotFoundError: in ``setup``, if the data is not there; the message says what to do.
        ImportError: in ``setup`` of ``lfw``, if scikit-image is missing.

    Example:
        >>> data = ImageDataModule("digits", batch_size=32)
        >>> data.setup("fit")
        >>> x, y = next(iter(data.train_dataloader()))
        >>> tuple(x.shape), data.num_classes
        ((32, 1, 8, 8), 10)
    """

    def __init__(
        self,
        name: ImageName,
        data_dir: str | os.PathLike[str] = "data",
        batch_size: int = 128,
        eval_batch_size: int = 1024,
        val_fraction: float = 0.1,
        augment: bool = False,
        image_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        in_memory: bool | None = None,
        download: bool = True,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        gray: bool = False,
    ) -> None:
        super().__init__()
        data_dir = os.fspath(data_dir)  # a string in the hyperparameters: a Path could not be read back
        self.save_hyperparameters(logger=False)
        if name not in get_args(ImageName):
            raise ValueError(f"`name` must be one of {', '.join(get_args(ImageName))}, got {name!r}")
        for argument, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            check_count(value, argument)
        check_finite(val_fraction, "val_fraction")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"`val_fraction` must be in [0, 1), got {val_fraction!r}; 0 switches validation off")
        check_count(num_workers, "num_workers", least=0)
        check_seed(seed)
        if image_size is not None:
            check_count(image_size, "image_size")
            if name not in FILES + SHIPPED:
                raise ValueError(f"`image_size` is for {', '.join(FILES + SHIPPED)}, got {image_size} for {name!r}")
        # Attributes, not `hparams`: LightningCLI gives a datamodule inside another one the outer one's hparams.
        self.dataset = name
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.augment = augment
        self.image_size = image_size
        self.num_workers = num_workers
        self.seed = seed
        self.in_memory = in_memory
        self.download = download
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.gray = gray
        self._sets: dict[str, Dataset[tuple[Tensor, Tensor]]] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes; an imagefolder's class folders are counted."""
        return len(folder_classes(self.data_dir)) if self.dataset == "imagefolder" else SPECS[self.dataset].num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W); an imagefolder's first file tells the size if ``image_size`` does not."""
        channels = 3 if self.dataset == "imagefolder" else SPECS[self.dataset].shape[0]
        if self.image_size is not None:
            height = width = self.image_size
        elif self.dataset == "imagefolder":
            height, width = folder_images(self.data_dir, "train", None, self.gray).shape[1:]
        else:
            height, width = SPECS[self.dataset].shape[1:]
        return (1 if self.gray else channels, height, width)

    def prepare_data(self) -> None:
        """Fetch the files, on one process; torchvision checks them by checksum and fetches only what is missing."""
        if self.download and self.dataset not in (*SHIPPED, "imagefolder"):
            for split in ("train",) if self.dataset == "celeba" else ("train", "test"):  # celeba comes in one piece
                torchvision_dataset(self.dataset, self.data_dir, split, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs and was not read before.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all.
        """
        if stage not in _STAGES:
            raise ValueError(f"`stage` must be fit, validate, test, predict or None, got {stage!r}")
        for split in _STAGES[stage]:
            if split not in self._sets:
                self._sets.update(self._read(split))

    def _read(self, split: str) -> dict[str, Dataset[tuple[Tensor, Tensor]]]:
        has_val_folder = self.dataset == "imagefolder" and (Path(self.data_dir) / "val").is_dir()
        if split == "test" or has_val_folder or self.dataset == "celeba":
            return {split: self._dataset(*self._load(split), augment=self.augment and split == "train")}
        # Training and validation share one copy of the pixels and differ in the augmentation.
        images, labels = self._load("train")
        total = len(labels)
        held_out = round(self.val_fraction * total)
        if self.val_fraction and not 0 < held_out < total:
            raise ValueError(
                f"`val_fraction`={self.val_fraction} of {total} training images is {held_out} images; "
                "both parts need at least one (0 switches validation off)"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return {
            "train": Subset(self._dataset(images, labels, augment=self.augment), sorted(order[held_out:])),
            "val": Subset(self._dataset(images, labels, augment=False), sorted(order[:held_out])),
        }

    def _load(self, split: str) -> tuple[Tensor | ImageFiles, Tensor]:
        if self.dataset not in FILES:
            images, labels = read_named(self.dataset, self.data_dir, train=split == "train")
            if self.image_size is not None:
                images = _resize(images, self.image_size, SPECS[self.dataset].levels)
            return (luminance(images) if self.gray and images.shape[1] == 3 else images), labels
        read = celeba_images if self.dataset == "celeba" else folder_images
        files = read(self.data_dir, split, self.image_size, self.gray)
        size = len(files) * torch.Size(files.shape).numel()
        if self.in_memory is False or (self.in_memory is None and size > _MEMORY_LIMIT):
            return files, files.labels
        rank_zero_info(f"Decoding {len(files)} {split} images into memory ({size / 2**20:.0f} MiB)")
        return files.read(range(len(files))), files.labels

    def _dataset(self, images: Tensor | ImageFiles, labels: Tensor, augment: bool) -> ImageDataset:
        spec = SPECS.get(self.dataset)
        padding, flip, levels = (FOLDER_PADDING, True, 255) if spec is None else (spec.padding, spec.flip, spec.levels)
        if spec is not None and self.image_size is not None and self.dataset in SHIPPED:
            padding, levels = max(1, round(padding * self.image_size / spec.shape[1])), 255
        return ImageDataset(images, labels, levels, padding if augment else 0, flip and augment)

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        if split not in self._sets:
            raise RuntimeError(f"the {split} images have not been read: call setup() first, as the Trainer does")
        return DataLoader(
            self._sets[split],
            batch_size=self.batch_size if split == "train" else self.eval_batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate_images,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation batches in fixed order; with ``val_fraction`` 0 an empty list: Lightning says so and goes on."""
        return self._loader("val") if self.val_fraction else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test batches, with labels."""
        return self._loader("test")


def _resize(images: Tensor, size: int, levels: int) -> Tensor:
    """Images whose white is ``levels`` as others of another size, whose white is 255."""
    resized: Tensor = vision.resize(images * (255 / levels), [size, size], antialias=True)
    return resized.round().to(torch.uint8)

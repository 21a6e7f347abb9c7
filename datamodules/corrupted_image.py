"""Images under the common corruptions, made on the device as they are needed, or read from the published files.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from pl_robust._dataloaders import flatten_loaders
from pl_robust._lightning import LightningDataModule, is_before, rank_zero_info, unsavable
from pl_robust._number import check_count
from pl_robust.datamodules._corruption_arrays import CorruptionArrays
from pl_robust.datamodules._corruption_folders import CorruptionFolders
from pl_robust.datamodules._corruption_manifest import read_manifest
from pl_robust.datamodules._image_dataset import collate_images
from pl_robust.datamodules._image_source import folder_classes
from pl_robust.datamodules._pending_corruption import CorruptLater, PendingCorruption, indexed_loader
from pl_robust.datamodules._wrapper import DataModuleWrapper, _overrides
from pl_robust.datamodules.image import ImageDataModule
from pl_robust.metrics._corruption_names import Corruptions, corruption_names
from pl_robust.metrics.mean_corruption_error import check_severities
from pl_robust.transforms._corruptions.tables import TableName


class CorruptedImageDataModule(DataModuleWrapper):
    """The corruption suite of a data set: one test loader for each corruption and severity, ``"fog/3"``, beside it.

    The images come from one of two places:

    * ``base`` alone: its test images are corrupted by ``transforms.corrupt`` on the device, behind the batch's transfer
      and before any ``on_after_batch_transfer``. The seed of an image is its index in its data set, so that it looks
      the same whatever the batch size, the number of workers, the ranks or the order; and, on a CPU, bit for bit as
      ``pl-robust corrupt`` writes it.
    * ``data_dir``: they are read from files, in the layout of CIFAR-10-C (``<name>.npy``, uint8 [5 * n, H, W, C], and
      ``labels.npy``; memory-mapped, never loaded whole), or in that of ImageNet-C and Tiny-ImageNet-C
      (``[<group>/]<name>/<severity>/<class>/*``, class k being the k-th folder name, as in the clean data). Missing or
      differing files are refused in ``setup``, and so are those whose checksum is not that in the manifest which
      ``pl-robust corrupt`` writes. ``base``, if there is one, brings the clean data; its batches must be (x, y), too.

    ``test_dataloader`` gives a dict of loaders: ``"clean"``, then ``"<name>/<severity>"``, so that
    ``AdversarialTraining`` logs test/acc/fog/3 and prints a table (Lightning 1 takes no dict: a list in this order).
    A module of yours takes them with ``test_step(self, batch, batch_idx, dataloader_idx=0)``; one that cannot be
    changed is served by ``CorruptionEvaluator``.
    ``val_dataloader`` gives the same for the validation images, or, with ``data_dir``, for the files. Except within
    ``fit``: it trains and validates on the base's clean data, so that nothing is chosen by the suite. ``predict`` runs
    over the base's clean data as well.

    To corrupt what another wrapper makes, put this around it. A wrapper around this one changes what is read from
    files, and refuses what is generated, for that is corrupted behind anything a loader does.

    Args:
        base: the datamodule of the clean data, whose batches hold float [B, C, H, W] in [0, 1]; its validation and test
            loader must be one torch DataLoader each, over a data set with indices.
        data_dir: folder of the corrupted images; ``None``: they are made from those of ``base``.
        corruptions: ``benchmark``: the 15 of the benchmark; ``all``: those and the 4 extra ones; or a list of names.
        severities: which of 1 to 5.
        table: whose constants images are corrupted with: ``cifar``, ``tiny_imagenet`` or ``imagenet``; ``None``: by
            the shorter side, up to 48 pixels, up to 96, and above. Files are as they are.
        clean: whether a loader of the clean images stands beside them; ``None``: if there is a ``base``.
        input_key: where a batch of ``base`` has its images: position in a sequence, key in a dict. Batches from files
            are (x, y), x float32 [B, C, H, W] in [0, 1] and y int64 [B].
        batch_size: images per batch and rank from files; generated ones come in the batches of ``base``.
        num_workers: loader processes that read files, likewise.
        pin_memory: copy batches from files to pinned memory, likewise.

    Attributes:
        num_classes: number of classes; the base's, or as the files tell; before ``setup``, too.
        image_shape: (C, H, W), likewise.

    Raises:
        TypeError: if ``base`` is no datamodule, or an argument of another type; later, if its loader is no torch
            DataLoader with an indexed data set, or its images are not float.
        ValueError: if an argument is not as described; in ``setup``, if a file is not; later, if the base has more or
            less than one loader, or the first of its batches is not in [0, 1].
        FileNotFoundError: in ``setup``, if a file or folder is missing; the message names it.
    """

    def __init__(
        self,
        base: LightningDataModule | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        corruptions: Corruptions = "benchmark",
        severities: Sequence[int] = (1, 2, 3, 4, 5),
        table: TableName | None = None,
        clean: bool | None = None,
        input_key: int | str = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if base is None and data_dir is None:
            raise ValueError("give `base`, whose images are to be corrupted, or `data_dir`, where corrupted ones are")
        super().__init__(LightningDataModule() if base is None else base)
        data_dir = None if data_dir is None else os.fspath(data_dir)  # a Path could not be read back
        self.save_hyperparameters(ignore=unsavable(base=base), logger=False)
        if table is not None and table not in get_args(TableName):
            raise ValueError(f"`table` must be one of {', '.join(get_args(TableName))} or None, got {table!r}")
        if clean and base is None:
            raise ValueError("`clean`=True takes the clean images from `base`, which is not given")
        check_count(batch_size, "batch_size")
        if num_workers < 0:
            raise ValueError(f"`num_workers` must be 0 or more, got {num_workers!r}")
        self.data_dir = data_dir
        self.corruptions = corruption_names(corruptions, must_be_known=data_dir is None)
        self.severities = check_severities(severities)
        self.table = table
        self.clean = base is not None if clean is None else clean
        self._has_base = base is not None
        self.input_key = input_key
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._opened: CorruptionArrays | CorruptionFolders | None = None
        self._is_checked = False
        self._has_looked = False
        # The wrapper has bound what the base does itself; where this class must have its say, its own method returns.
        own = ["val_dataloader", "test_dataloader"] if data_dir is not None else ["transfer_batch_to_device"]
        if data_dir is None and _overrides(self.base, "on_before_batch_transfer"):
            own.append("on_before_batch_transfer")
        for name in own:
            vars(self).pop(name, None)

    @property
    def num_classes(self) -> int:
        """Number of classes: the base's, else as the files tell."""
        if self.data_dir is None or getattr(self.base, "num_classes", None) is not None:
            return super().num_classes
        return self._files.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W): the base's, else that of the files."""
        if self.data_dir is None or getattr(self.base, "image_shape", None) is not None:
            return super().image_shape
        return self._files.image_shape

    def setup(self, stage: str | None = None) -> None:
        """Let the base read its data, and check the files; they are checked once.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all.
        """
        if stage == "fit" and not self._has_base:
            raise ValueError("`base` must be given to `fit`: it brings the clean data that is trained on, got None")
        super().setup(stage)
        if self.data_dir is not None and stage in ("validate", "test", None):
            if stage == "validate" and self.clean:
                super().setup("test")  # of whose images the files are the corrupted ones
            self._check_files()

    def train_dataloader(self) -> Any:
        """The base's training batches, clean."""
        return self.base.train_dataloader()

    def val_dataloader(self) -> Any:
        """Within ``fit`` the base's clean validation batches; else the suite, of the validation images if generated."""
        state = None if self.trainer is None else self.trainer.state
        if state is not None and state.fn == "fit" and state.status == "running":
            return self.base.val_dataloader() if _overrides(self.base, "val_dataloader") else []
        return self._suite("validation" if self.data_dir is None else "test")

    def test_dataloader(self) -> Any:
        """The suite, of the test images."""
        return self._suite("test")

    def predict_dataloader(self) -> Any:
        """The base's predict batches, clean."""
        return self.base.predict_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Hand the batch, not what is to be done to it, to the base's hook."""
        if not isinstance(batch, PendingCorruption):
            return self.base.on_before_batch_transfer(batch, dataloader_idx)
        return PendingCorruption(
            self.base.on_before_batch_transfer(batch.batch, dataloader_idx), batch.index, batch.how
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Transfer the batch as it would be without this, then corrupt it there."""
        trainer = self.trainer
        owner: Any = self.base
        if trainer is not None and not _overrides(self.base, "transfer_batch_to_device"):
            owner = trainer.lightning_module
        if not isinstance(batch, PendingCorruption):
            return owner.transfer_batch_to_device(batch, device, dataloader_idx)
        if not self._has_looked:  # once: whoever normalizes does it to all images
            batch.check()
            self._has_looked = True
        moved = owner.transfer_batch_to_device(batch.batch, device, dataloader_idx)
        corrupted = batch.how.corrupt(moved, batch.index)
        if trainer is None:
            return corrupted
        # Lightning could not see into what is pending; in half precision the corruption would be another.
        return apply_to_collection(corrupted, Tensor, trainer.precision_plugin.convert_input)

    def _suite(self, split: str) -> Any:
        clean = self._base_loader(split) if self.clean or self.data_dir is None else None
        if self.data_dir is None:
            make: Callable[[str, int], Any] = partial(self._generated, indexed_loader(clean))
        else:
            self._check_files()
            make = self._stored
        sets = {"clean": clean} if self.clean else {}
        sets.update({f"{name}/{step}": make(name, step) for name in self.corruptions for step in self.severities})
        # Lightning 1 would iterate over the names.
        return list(sets.values()) if is_before("2.0") else sets

    def _generated(self, indexed: DataLoader[Any], name: str, severity: int) -> Any:
        return self._wrap(indexed, self._transform(name, severity))

    def _stored(self, name: str, severity: int) -> DataLoader[Any]:
        return DataLoader(
            self._files.dataset(name, severity),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_images,
            pin_memory=self.pin_memory,
        )

    def _base_loader(self, split: str) -> Any:
        loaders = flatten_loaders(self.base.test_dataloader() if split == "test" else self.base.val_dataloader())
        if len(loaders) != 1:
            raise ValueError(
                f"`base` must have one {split} loader, whose images are corrupted, {type(self.base).__name__} gives "
                f"{len(loaders)}"
            )
        return loaders[0]

    def _transform(self, name: str = "gaussian_noise", severity: int = 1) -> CorruptLater:
        return CorruptLater(name, severity, self.table, self.input_key)

    @property
    def _files(self) -> CorruptionArrays | CorruptionFolders:
        if self._opened is None:
            folder = Path(str(self.data_dir))
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"`data_dir`={self.data_dir!r} is no folder; it must be the one that holds the corrupted images, "
                    "such as CIFAR-10-C"
                )
            if any(folder.glob("*.npy")):
                self._opened = CorruptionArrays(folder, self.corruptions, self.severities)
            else:
                classes = _class_names(self.base)
                self._opened = CorruptionFolders(folder, self.corruptions, self.severities, classes)
        return self._opened

    def _check_files(self) -> None:
        if not self._is_checked:
            rank_zero_info(f"Checking the corrupted images in {self.data_dir}")
            manifest = read_manifest(Path(str(self.data_dir))) or {}
            if self.table not in (None, manifest.get("table", self.table)):
                raise ValueError(
                    f"`data_dir`={self.data_dir!r} holds corruptions of `table`={manifest['table']!r}, "
                    f"got {self.table!r}"
                )
            self._files.check(getattr(self.base, "num_classes", None))
            self._is_checked = True


def _class_names(datamodule: Any) -> list[str] | None:
    """The clean data's classes by name, in their order, if they come from folders."""
    while isinstance(datamodule, DataModuleWrapper):
        datamodule = datamodule.base
    is_folder = isinstance(datamodule, ImageDataModule) and datamodule.dataset == "imagefolder"
    return folder_classes(datamodule.data_dir) if is_folder else None

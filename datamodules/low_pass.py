"""Data without its high frequencies.

Ortiz-Jimenez, de Jorge, Sanyal, Bibi, Dokania, Frossard, Rogez, Torr, "Catastrophic overfitting can be induced with
discriminative non-robust features", TMLR 2023, https://arxiv.org/abs/2206.08242.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pl_robust._batch import replace_entry, take_entry
from pl_robust._lightning import LightningDataModule, unsavable
from pl_robust.datamodules._wrapper import DataModuleWrapper
from pl_robust.transforms.dct_low_pass import DCTLowPass


class LowPassDataModule(DataModuleWrapper):
    """Another datamodule's images without their high frequencies: ``dct_low_pass(x, bandwidth)``.

    All splits are filtered, after everything the base does to a sample. The paper keeps 16 of 32 frequencies of
    CIFAR-10 and augments the training images: ``LowPassDataModule(ImageDataModule("cifar10", augment=True,
    eval_batch_size=512), bandwidth=16)``. The result is NOT clipped: it overshoots at edges and leaves [0, 1]; give
    attacks ``bounds=None``.

    An attack on this data may use high frequencies, which a filter before the network takes away:
    ``nn.Sequential(DCTLowPass(16), net)``.

    The base keeps its own say: its loaders, hooks and state are used as they are, it sees the same trainer, and a
    loader it does not have stays missing. Its loaders are copied, not changed.

    Args:
        base: the datamodule to filter; its loaders must be torch DataLoaders (alone, or in lists and dicts).
        bandwidth: number of frequencies kept, or one number each for (height, width).
        input_key: where a batch has its images: position in a sequence, key in a dict. A batch that is a tensor is
            filtered as it is.

    Raises:
        TypeError: if ``base`` is no datamodule or ``bandwidth`` not an integer or two; later, if a loader is no torch
            DataLoader, or the images are not float [B, C, H, W].
        ValueError: if ``bandwidth`` is less than 1; later, if it is larger than the images.
    """

    _way_out = "filter inside its data set instead: dct_low_pass(x, bandwidth)"

    def __init__(self, base: LightningDataModule, bandwidth: int | tuple[int, int], input_key: int | str = 0) -> None:
        super().__init__(base)
        self.save_hyperparameters(ignore=unsavable(base=base), logger=False)
        self._filter = _Filter(DCTLowPass(bandwidth), input_key)

    def _transform(self) -> _Filter:
        return self._filter


class _Filter:
    """Replace the images of a batch by the filtered ones; at module level, so that worker processes can unpickle it."""

    def __init__(self, low_pass: DCTLowPass, input_key: int | str) -> None:
        self.low_pass = low_pass
        self.input_key = input_key

    def __call__(self, batch: Any) -> Any:
        if isinstance(batch, Tensor):
            return self._filtered(batch)
        return replace_entry(batch, self.input_key, self._filtered(take_entry(batch, self.input_key)))

    def _filtered(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():  # the filter itself would take a batch of vectors for an image
            raise TypeError(
                f"float images [B, C, H, W] can be filtered, got {x.dtype} of shape {list(x.shape)}; "
                "`input_key` says where a batch has them"
            )
        filtered: Tensor = self.low_pass(x)
        return filtered

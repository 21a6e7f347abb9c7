"""Data with a feature injected into it that a linear classifier could read: x + beta * V[y].

Ortiz-Jimenez, de Jorge, Sanyal, Bibi, Dokania, Frossard, Rogez, Torr, "Catastrophic overfitting can be induced with
discriminative non-robust features", TMLR 2023, https://arxiv.org/abs/2206.08242.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from pl_robust._batch import split_batch
from pl_robust._lightning import LightningDataModule, Trainer, unsavable
from pl_robust._number import parse_number
from pl_robust.transforms.dct_carrier import dct_carrier

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "state_dict",
    "load_state_dict",
    "on_exception",
)
_SETTINGS = ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices")


class _Injection:
    """Replace the images x of a batch by ``x + beta * V[y]``; V is made for the size of the images, once."""

    def __init__(
        self, beta: float, num_classes: int, carriers: Tensor | None, input_key: int | str, label_key: int | str
    ) -> None:
        self.beta = beta
        self.num_classes = num_classes
        self.carriers = carriers
        self.input_key = input_key
        self.label_key = label_key
        self._scaled: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, batch: Any) -> Any:
        x, y = split_batch(batch, self.input_key, self.label_key)
        if x.ndim != 4 or not x.is_floating_point():
            raise TypeError(
                "a feature can be injected into float images [B, C, H, W] in the units of `beta`, "
                f"got {x.dtype} of shape {list(x.shape)}; turn them into floats in the data set's transform"
            )
        if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex():
            raise TypeError(f"labels must be integers of shape {[len(x)]}, got {y.dtype} of shape {list(y.shape)}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"labels must be 0 to {self.num_classes - 1}, got {int(y.min())} to {int(y.max())}; "
                "`num_classes` sets how many classes get a carrier"
            )
        if self.beta == 0:
            return batch
        return _replace(batch, self.input_key, x + self._carriers(x)[y.long()])

    def _carriers(self, x: Tensor) -> Tensor:
        key = (*x.shape[1:], x.dtype, x.device)
        if key not in self._scaled:
            height, width = x.shape[2:]
            signs = dct_carrier(self.num_classes, (height, width)) if self.carriers is None else self.carriers
            if signs.shape[1] not in (1, x.shape[1]) or signs.shape[2:] != x.shape[2:]:
                raise ValueError(
                    f"`carriers` must fit images of shape {list(x.shape[1:])}, got {list(signs.shape)}; "
                    "they are [num_classes, 1 or C, H, W]"
                )
            self._scaled[key] = self.beta * signs.to(x)
        return self._scaled[key]


class _InjectingCollate:
    """A loader's own ``collate_fn``, then the injection; at module level, so that worker processes can unpickle it."""

    def __init__(self, collate_fn: Callable[[Any], Any], injection: _Injection) -> None:
        self.collate_fn = collate_fn
        self.injection = injection

    def __call__(self, samples: Any) -> Any:
        return self.injection(self.collate_fn(samples))


class InjectedFeatureDataModule(LightningDataModule):
    """Another datamodule's data, with one carrier per class added to the images: ``x + beta * V[y]``.

    All splits are injected, as in the paper, after everything the base does to a sample. The result is NOT clipped: it
    leaves [0, 1] by up to ``beta``. An attack that clips to [0, 1] would take part of the carrier away and exceed its
    own eps; give it ``bounds=None``, or ``(-beta, 1 + beta)``.

    The base keeps its own say: its loaders, hooks and state are used as they are, it sees the same trainer, and a
    loader it does not have stays missing. Its loaders are copied, not changed.

    Args:
        base: the datamodule to inject into; its loaders must be torch DataLoaders (alone, or in lists and dicts).
        beta: strength of the feature, in the units of the images: a number or a fraction such as ``"8/255"``. 0 leaves
            every bit as it is; a negative one injects the opposite carriers.
        carriers: V, float [num_classes, 1 or C, H, W]; ``None``: ``dct_carrier(num_classes, (H, W))``.
        num_classes: number of carriers; ``None``: that of ``carriers``, or the base's ``num_classes``.
        input_key: where a batch has its images: position in a sequence, key in a dict.
        label_key: where a batch has its labels, likewise.

    Raises:
        TypeError: if ``base`` is no datamodule; later, if a loader is no torch DataLoader, the images are not float
            [B, C, H, W] or the labels not integer [B].
        ValueError: if ``beta`` is not a finite number, or ``carriers`` are not 4-D or contradict ``num_classes``;
            later, if labels are out of range or carriers do not fit the images.
    """

    def __init__(
        self,
        base: LightningDataModule,
        beta: float | str,
        carriers: Tensor | None = None,
        num_classes: int | None = None,
        input_key: int | str = 0,
        label_key: int | str = 1,
    ) -> None:
        missing = [name for name in ("prepare_data", "setup", *_LOADERS) if not hasattr(base, name)]
        if missing:
            raise TypeError(f"`base` must be a LightningDataModule, got {type(base).__name__} without {missing}")
        self.base = base  # first of all: `trainer`, which the next line sets, lives there
        super().__init__()
        self.save_hyperparameters(ignore=unsavable(base=base, carriers=carriers), logger=False)
        self._beta = parse_number(beta, "beta")
        if not math.isfinite(self._beta):
            raise ValueError(f"`beta` must be finite, got {beta!r}")
        if carriers is not None and carriers.ndim != 4:
            raise ValueError(f"`carriers` must be [num_classes, 1 or C, H, W], got shape {list(carriers.shape)}")
        if carriers is not None and num_classes not in (None, len(carriers)):
            raise ValueError(f"`num_classes` must be the number of `carriers`, {len(carriers)}, got {num_classes}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer, got {num_classes!r}")
        self._carriers = carriers
        self._num_classes = num_classes if carriers is None else len(carriers)
        self._keys = (input_key, label_key)
        # Bound to the base's methods one by one, because Lightning asks of each whether it is overridden: a method
        # written here would hide the LightningModule's hook of that name, or promise a loader that the base lacks.
        for name in _HOOKS + _SETTINGS:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        for name in _LOADERS:
            if not _overrides(base, name):
                setattr(self, name, getattr(base, name))

    @property
    def trainer(self) -> Trainer | None:
        """The trainer, shared with the base."""
        return self.base.trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.base.trainer = trainer

    @property
    def num_classes(self) -> int:
        """Number of classes: the argument, else the number of carriers, else the base's."""
        number = getattr(self.base, "num_classes", None) if self._num_classes is None else self._num_classes
        if number is None:
            raise AttributeError(f"{type(self.base).__name__} does not tell `num_classes`: give `num_classes=` as well")
        return int(number)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), if the base tells it."""
        shape = getattr(self.base, "image_shape", None)
        if shape is None:
            raise AttributeError(f"{type(self.base).__name__} has no `image_shape`; take the shape from a batch")
        channels, height, width = shape
        return channels, height, width

    def prepare_data(self) -> None:
        """Let the base fetch its data."""
        self.base.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Let the base read its data.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all.
        """
        self.base.setup(stage)  # type: ignore[arg-type]  # Lightning's annotation forgets None, which its text allows

    def teardown(self, stage: str | None = None) -> None:
        """Let the base clean up.

        Args:
            stage: as in ``setup``.
        """
        self.base.teardown(stage)  # type: ignore[arg-type]

    def train_dataloader(self) -> Any:
        """The base's training batches, injected."""
        return self._inject(self.base.train_dataloader())

    def val_dataloader(self) -> Any:
        """The base's validation batches, injected."""
        return self._inject(self.base.val_dataloader())

    def test_dataloader(self) -> Any:
        """The base's test batches, injected."""
        return self._inject(self.base.test_dataloader())

    def predict_dataloader(self) -> Any:
        """The base's predict batches, injected."""
        return self._inject(self.base.predict_dataloader())

    def _inject(self, loaders: Any) -> Any:
        if isinstance(loaders, Mapping):
            return {name: self._inject(loader) for name, loader in loaders.items()}
        if isinstance(loaders, list | tuple):
            return [self._inject(loader) for loader in loaders]
        if not isinstance(loaders, DataLoader):
            raise TypeError(
                f"`base` must give torch DataLoaders, alone or in lists and dicts, got {type(loaders).__name__}; "
                "inject inside its data set instead: x + beta * dct_carrier(num_classes, (H, W))[y]"
            )
        injection = _Injection(self._beta, self.num_classes, self._carriers, *self._keys)
        # A copy: a base that keeps its loader would otherwise be injected once more at every call.
        loader = copy.copy(loaders)
        loader._iterator = None  # workers that live on from the base's own loader know nothing of the injection
        loader.collate_fn = _InjectingCollate(loaders.collate_fn, injection)
        return loader


def _overrides(datamodule: LightningDataModule, name: str) -> bool:
    """Whether a datamodule, of either Lightning namespace, has its own method ``name``."""
    if name in vars(datamodule):
        return True
    home = next(cls for cls in type(datamodule).__mro__ if name in vars(cls))
    return not home.__module__.startswith(("pytorch_lightning.", "lightning.pytorch."))


def _replace(batch: Any, key: Any, value: Tensor) -> Any:
    """Copy a batch with one entry replaced; the copy is of the same type."""
    if isinstance(batch, MutableMapping | list):
        batch = copy.copy(batch)
        batch[key] = value
        return batch
    if isinstance(batch, Mapping):
        return type(batch)({**batch, key: value})  # type: ignore[call-arg]
    items = [value if position == key else item for position, item in enumerate(batch)]
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)

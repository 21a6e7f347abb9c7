"""Another datamodule's data with every batch changed: what such a datamodule needs, whatever the change is."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader

from pl_robust._lightning import LightningDataModule, Trainer

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


class DataModuleWrapper(LightningDataModule, ABC):
    """Another datamodule's data, with each batch changed by ``_transform`` after everything the base does to it.

    The base keeps its own say: its loaders, hooks and state are used as they are, it sees the same trainer, and a
    loader it does not have stays missing. Its loaders are copied, not changed. A subclass writes ``_transform``, and
    overrides a loader's method where a split needs something else.

    Args:
        base: the wrapped datamodule; its loaders must be torch DataLoaders (alone, or in lists and dicts).

    Raises:
        TypeError: if ``base`` is no datamodule; later, if a loader is no torch DataLoader.
    """

    # What to do about a loader that is none of torch's; ends the error's sentence.
    _way_out = "change the images inside its data set instead"

    def __init__(self, base: LightningDataModule) -> None:
        missing = [name for name in ("prepare_data", "setup", *_LOADERS) if not hasattr(base, name)]
        if missing:
            raise TypeError(f"`base` must be a LightningDataModule, got {type(base).__name__} without {missing}")
        self.base = base  # first of all: `trainer`, which the next line sets, lives there
        super().__init__()
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
        """Number of classes, if the base tells it."""
        number = getattr(self.base, "num_classes", None)
        if number is None:
            raise AttributeError(f"{type(self.base).__name__} has no `num_classes`; give it that attribute")
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
        """The base's training batches, transformed."""
        return self._wrap(self.base.train_dataloader(), self._transform())

    def val_dataloader(self) -> Any:
        """The base's validation batches, transformed."""
        return self._wrap(self.base.val_dataloader(), self._transform())

    def test_dataloader(self) -> Any:
        """The base's test batches, transformed."""
        return self._wrap(self.base.test_dataloader(), self._transform())

    def predict_dataloader(self) -> Any:
        """The base's predict batches, transformed."""
        return self._wrap(self.base.predict_dataloader(), self._transform())

    @abstractmethod
    def _transform(self) -> Callable[[Any], Any]:
        """Make what is called on each collated batch and gives the batch to use; worker processes unpickle it."""

    def _wrap(self, loaders: Any, transform: Callable[[Any], Any]) -> Any:
        """Copy a loader, or each one in lists and dicts of them, with ``transform`` behind its collation."""
        if isinstance(loaders, Mapping):
            return {name: self._wrap(loader, transform) for name, loader in loaders.items()}
        if isinstance(loaders, list | tuple):
            return [self._wrap(loader, transform) for loader in loaders]
        if not isinstance(loaders, DataLoader):
            raise TypeError(
                f"`base` must give torch DataLoaders, alone or in lists and dicts, got {type(loaders).__name__}; "
                f"{self._way_out}"
            )
        # A copy: a base that keeps its loader would otherwise be transformed once more at every call.
        loader = copy.copy(loaders)
        loader._iterator = None  # workers that live on from the base's own loader know nothing of the transform
        self._change(loader, transform)
        return loader

    def _change(self, loader: DataLoader[Any], transform: Callable[[Any], Any]) -> None:
        """Put ``transform`` behind the collation of a loader, which is a copy already."""
        loader.collate_fn = _TransformingCollate(loader.collate_fn, transform)


class _TransformingCollate:
    """A loader's own ``collate_fn``, then the transform; at module level, so that worker processes can unpickle it."""

    def __init__(self, collate_fn: Callable[[Any], Any], transform: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn
        self.transform = transform

    def __call__(self, samples: Any) -> Any:
        return self.transform(self.collate_fn(samples))


def _overrides(datamodule: LightningDataModule, name: str) -> bool:
    """Whether a datamodule, of either Lightning namespace, has a method ``name`` other than Lightning's."""
    # Of the function, not of the class: a wrapper has bound to itself what its own base does not override. Lightning's
    # `from_datasets` gives loaders that are no methods.
    function = getattr(getattr(datamodule, name), "__func__", None)
    return function is None or not function.__module__.startswith(("pytorch_lightning.", "lightning.pytorch."))

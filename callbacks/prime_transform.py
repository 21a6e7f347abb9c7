"""Augment the training images of any project on their device: PRIME, AugMix, or another batch augmentation."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pl_robust._batch import entry_keys, replace_entry, take_entry
from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust.attacks._target import Normalization
from pl_robust.callbacks._batch_transform import add_batch_transform
from pl_robust.callbacks._image_augmentation import Augmentation, ImageAugmentation
from pl_robust.transforms._primitive import check_images


class PRIMETransform(Callback):
    """Augment each training batch on its device; nothing else in the project changes.

    Works with any module and datamodule whose batches are float images [B, C, H, W] in [0, 1], or hold them in a tuple,
    list, namedtuple, dict or dataclass. They are replaced in a copy of the batch, after everything that module and
    datamodule do to it in their own ``on_after_batch_transfer``, before the callbacks' ``on_train_batch_start`` and
    ``training_step``. The sanity check, validation, test and predict see their batches as they are. When fit ends, be
    it by an error, module and datamodule are what they were. Several in one Trainer augment in the order of its
    callbacks; two with the same arguments need different seeds.

    Images are augmented in float32 outside autocast and come back in their own dtype. The random numbers depend on
    ``seed``, the process's rank and the number of the batch alone: all other generators are left alone, no two ranks
    draw the same, and a resumed run goes on with the numbers of the uninterrupted one.

    Args:
        transform: ``"cifar"`` or ``"imagenet"``, PRIME with the published settings for 32x32 or 224x224 images; or any
            batch augmentation ``transform(x, generator=...)``: float32 images [B, C, H, W] in [0, 1], and a generator
            on the CPU to draw all random numbers from -> images of the same shape, a new tensor.
        views: 1: one augmented view in the place of the images. 3: the list [images, view, view] there, if the module
            says that it takes it by a true attribute ``accepts_views``, as ``AugmentedTraining`` does; other modules
            get one view, and the user a warning.
        input_key: where a batch has its images: position in tuples and lists, key in dicts, field in dataclasses.
        seed: of the random numbers.
        normalization: (mean, std) per channel of data that is normalized before it reaches the module: images are
            augmented as they were before, and normalized again.

    Raises:
        TypeError: at construction, for an argument of another type; at the first batch, for images that are not
            floating point.
        ValueError: at construction, for a value that is not allowed; at the first batch, for images that are no
            [B, C, H, W] or leave [0, 1].
        KeyError: at the first batch, if it has no ``input_key``.
        MisconfigurationException: at the start of fit, if another PRIMETransform is to augment a list of views.
    """

    def __init__(
        self,
        transform: Augmentation = "cifar",
        *,
        views: Literal[1, 3] = 1,
        input_key: str | int = 0,
        seed: int = 0,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        if views not in (1, 3):
            raise ValueError(f"`views` must be 1, or 3 for [images, view, view], got {views!r}")
        _check_seed(seed)
        self.views = views
        self.input_key = input_key
        self.seed = seed
        self._augmentation = ImageAugmentation(transform, normalization)
        self._batches = 0  # augmented so far: the same number on all ranks
        # Of the fit that is under way:
        self._remove: Callable[[], None] | None = None
        self._stream = (0, 0)  # rank, and number among the PRIMETransforms
        self._gives_views = False
        self._was_called = False
        self._has_warned = False

    @property
    def state_key(self) -> str:
        """Tell transforms apart by their arguments."""
        return self._generate_state_key(
            transform=self._augmentation.name,
            views=self.views,
            input_key=self.input_key,
            seed=self.seed,
            normalization=repr(self._augmentation.normalization),
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the hook that ends the batches' transfer."""
        if stage != "fit":
            return
        self._leave()
        peers = [other for other in trainer.callbacks if isinstance(other, PRIMETransform)]  # type: ignore[attr-defined]
        number = peers.index(self)
        self._stream = (trainer.global_rank, number)
        self._gives_views = self.views == 3 and bool(getattr(pl_module, "accepts_views", False))
        if self.views == 3 and not self._gives_views:
            rank_zero_warn(
                f"PRIMETransform(views=3) gives {type(pl_module).__name__} one augmented view, since its attribute "
                "`accepts_views` is not true: AugmentedTraining takes all three, unless its `jsd_weight` is 0"
            )
        if self._gives_views and any(other.input_key == self.input_key for other in peers[number + 1 :]):
            raise MisconfigurationException(
                "only the last of several PRIMETransforms may have views=3: the next one finds a list in the place of "
                "the images"
            )
        if trainer.global_step == 0:  # else this fit goes on with the last one
            self._batches = 0
        self._was_called = self._has_warned = False
        self._augmentation.start()
        self._remove = add_batch_transform(trainer, self._replace_images)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Warn if the batches do not pass the hook."""
        if not self._was_called:
            self._was_called = True
            rank_zero_warn(
                "PRIMETransform augments nothing: the batches do not pass `on_after_batch_transfer`. Lightning leaves "
                "it out for `training_step(self, dataloader_iter)`: write `training_step(self, batch, batch_idx)`"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the hook."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the hook: there is no ``teardown`` after an error."""
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        """How many batches have been augmented: with the arguments, all that the next random numbers depend on."""
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self._batches = state_dict["batches"]

    def _leave(self) -> None:
        if self._remove is not None:
            self._remove()
            self._remove = None

    def _replace_images(self, batch: Any) -> Any:
        self._was_called = True
        if isinstance(batch, Tensor):
            return self._augment(batch)
        if entry_keys(batch) is not None:
            return replace_entry(batch, self.input_key, self._augment(take_entry(batch, self.input_key)))
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"PRIMETransform lets batches of type {type(batch).__name__} pass as they are: it finds images in "
                "tensors, tuples, lists, namedtuples, dicts and dataclasses"
            )
        return batch

    def _augment(self, x: Tensor) -> Tensor | list[Tensor]:
        try:
            check_images(x)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"PRIMETransform(input_key={self.input_key!r}): {error}, in the data set or in the hook "
                "`on_after_batch_transfer`, which comes before"
            ) from None
        # Mixed into one seed: neighbouring batches, ranks and seeds must have nothing in common.
        seed = np.random.SeedSequence((self.seed, *self._stream, self._batches)).generate_state(1, np.uint64)
        generator = torch.Generator()
        generator.manual_seed(int(seed[0]))
        self._batches += 1
        views = self._augmentation.views(x, 2 if self._gives_views else 1, generator)
        return [x, *views] if self._gives_views else views[0]


def _check_seed(seed: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) < 0:
        raise ValueError(f"`seed` must be an integer of at least 0, got {seed!r}")

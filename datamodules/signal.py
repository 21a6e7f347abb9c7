"""One signal, or several of one shape, to be fitted by an implicit neural representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pl_robust._lightning import LightningDataModule, rank_zero_warn, unsavable
from pl_robust._number import check_count, check_seed
from pl_robust._signal import Signal
from pl_robust.datamodules._signal_loaders import Loop, Piece, PieceLoader, StepLoader, cut
from pl_robust.datamodules._signal_points import Part, SignalPoints
from pl_robust.datamodules._signal_source import Recipe, Source, as_list, check_recipe, describe, read_signals
from pl_robust.datamodules._signal_split import Split, check_split, train_mask

_UNUSUAL = 10.0  # values beyond are far from what a network gives at initialization


class SignalDataModule(LightningDataModule):
    """A signal's points as ``(coordinates [N, d], values [N, c])``, float32; of S signals ``values [S, N, c]``.

    Pictures have values in [0, 1], sounds and tones in [-1, 1]; coordinates run from low to high along each axis (rows,
    then columns) without ``high``, as published. Several signals share their coordinates, and the points held out.

    The tensors live on the device from the first step on. The training loader yields the number of the step, and
    ``transfer_batch_to_device`` makes the batch of it: the training points themselves, the same memory at every step,
    or ``points_per_step`` of them drawn there, with replacement, by a generator seeded with ``seed``, the step and the
    rank. So nothing is copied, ``steps_per_epoch`` steps make an epoch of the Trainer, and a resumed run draws what the
    uninterrupted one does, with Lightning 2.5 or later inside an epoch, too. Do not change a batch in place.

    Under DDP each rank draws points of its own; the full batch is the same on every rank, which is correct and no
    faster. Evaluation shares the points out without repeating any.

    Validation runs over the points held out, or with ``split="all"`` over the whole signal, which are the training
    points; test over the whole signal; predict over its coordinates alone. The values are read and scaled once, when
    first asked for.

    Without a Trainer: ``for step in data.train_dataloader(): coordinates, values = data.batch(step, device)``.
    The loaders are for the Trainer's ``datamodule=``, not for its ``train_dataloaders=``.

    Args:
        signal: what to fit:

            * ``camera`` (gray), ``astronaut`` (RGB), both 512x512 of scikit-image; ``china.jpg``, ``flower.jpg``, RGB
              427x640 of scikit-learn;
            * ``tone``, a sine of ``frequency`` periods in ``length`` samples; a file of such a name is ``./tone``;
            * the path of a picture (turned upright, without transparency), of a .wav file (a channel each; integers
              scaled to [-1, 1]) or of a .npy file;
            * in Python, a tensor or array: [N], [H, W], [H, W, c], [D, H, W], [D, H, W, c]. Of these and of .npy,
              uint8, uint16 and bool are scaled to [0, 1], floats stay as they are;
            * a list of such, to fit them at once. One in a list is no list.
        grid_dims: number of grid axes of an array, where its shape does not tell them from channels.
        size: of pictures: pixels of the shorter side, or (height, width); bilinear with anti-aliasing.
        center_crop: cut pictures to their centred square before.
        gray: turn RGB pictures into their luminance.
        frequency: of the tone; ``None``: 23, as published.
        length: samples of the tone (``None``: 256, as published), or how many of a sound to take from its beginning.
        data_range: nominal range of the values, the peak of the PSNR; ``None``: 1 for values in [0, 1], 2 for sounds
            and values in [-1, 1], else their highest less their lowest.
        coordinate_range: (low, high) of each axis, inside [-1, 1].
        split: ``all``: train on all points; ``every``: on every ``stride``-th one along each axis (super-resolution,
            aliasing); ``random``: on a ``train_fraction`` of them.
        stride: for ``every``.
        train_fraction: for ``random``, in (0, 1).
        points_per_step: points drawn for a training step, on each rank; ``None``: all.
        steps_per_epoch: training steps in an epoch.
        eval_points: network evaluations in a batch of validation, test and predict, S of them at each point.
        seed: of the random split and the drawn points.

    Attributes:
        in_features, out_features: d and c, what a network must take and give; before ``setup``, too.
        num_signals: S.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument is not as described; in ``setup``, if the signal cannot be read, holds NaN or
            nothing, several differ in shape, or the split leaves a part of it empty.
        FileNotFoundError: in ``setup``, if there is no such file.
        ImportError: in ``setup``, if scikit-image is missing.

    Example:
        >>> data = SignalDataModule("tone", split="every", stride=2)
        >>> data.setup("fit")
        >>> [tuple(part.shape) for part in data.batch(0)]
        [(128, 1), (128, 1)]
    """

    def __init__(
        self,
        signal: Sequence[Source] | Source,  # the list first: jsonargparse would make a path of it
        grid_dims: int | None = None,
        size: int | tuple[int, int] | None = None,
        center_crop: bool = False,
        gray: bool = False,
        frequency: float | None = None,
        length: int | None = None,
        data_range: float | None = None,
        coordinate_range: tuple[float, float] = (-1.0, 1.0),
        split: Split = "all",
        stride: int = 2,
        train_fraction: float = 0.5,
        points_per_step: int | None = None,
        steps_per_epoch: int = 100,
        eval_points: int = 65536,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = as_list(signal)
        # Strings in the hyperparameters: a Path could not be read back.
        signal = self.sources if isinstance(signal, Sequence) and not isinstance(signal, str) else self.sources[0]
        self.save_hyperparameters(ignore=unsavable(signal=signal), logger=False)
        for name, value in (("steps_per_epoch", steps_per_epoch), ("eval_points", eval_points)):
            check_count(value, name)
        if points_per_step is not None:
            check_count(points_per_step, "points_per_step")
        check_seed(seed)
        check_split(split, stride, train_fraction)
        # Fails here, not in `setup`, where coordinates or range are wrong.
        Signal(torch.zeros(1, 1), coordinate_range, data_range=1.0 if data_range is None else data_range)
        self.recipe = check_recipe(Recipe(grid_dims, size, center_crop, gray, frequency, length))
        self.coordinate_range = coordinate_range
        self.split = split
        self.stride = stride
        self.train_fraction = train_fraction
        self.points_per_step = points_per_step
        self.steps_per_epoch = steps_per_epoch
        self.eval_points = eval_points
        self.seed = seed
        self._data_range = data_range
        self._signal: Signal | None = None
        self._mask: Tensor | None = None
        self._kept: SignalPoints | None = None

    def __str__(self) -> str:
        # Lightning's own looks into the loaders and takes them for lists of loaders; LightningCLI asks for it.
        return f"{type(self).__name__}(signal={', '.join(map(describe, self.sources))}, split={self.split!r})"

    @property
    def signal(self) -> Signal:
        """The signal, or the signals, on the CPU; read when first asked for."""
        if self._signal is None:
            self._signal = self._read()
        return self._signal

    @property
    def in_features(self) -> int:
        """d, the number of coordinates."""
        return len(self.signal.shape)

    @property
    def out_features(self) -> int:
        """c, the number of values at each point."""
        return self.signal.channels

    @property
    def num_signals(self) -> int:
        """S, the number of signals."""
        return len(self.sources)

    @property
    def data_range(self) -> float:
        """Nominal range of the values, highest less lowest possible."""
        return self.signal.data_range

    @property
    def train_mask(self) -> Tensor:
        """Which points are trained on: bool, with the shape of the grid."""
        if self._mask is None:
            self._mask = train_mask(self.signal.shape, self.split, self.stride, self.train_fraction, self.seed)
        return self._mask

    def setup(self, stage: str | None = None) -> None:
        """Read the signal and split its points.

        Args:
            stage: of the Trainer; all of them need the same.
        """
        self._kept = None  # another Trainer may have another precision
        count = self._points.count("train")
        if self.points_per_step is not None and self.points_per_step > count:
            raise ValueError(
                f"`points_per_step` must be at most {count}, the number of training points, got "
                f"{self.points_per_step}; None takes all of them at each step"
            )

    def teardown(self, stage: str | None = None) -> None:
        """Free the device's memory.

        Args:
            stage: of the Trainer.
        """
        self._kept = None

    def train_dataloader(self) -> StepLoader:
        """Numbers of training steps; see ``batch``."""
        return StepLoader(self.steps_per_epoch, self._count_done)

    def val_dataloader(self) -> PieceLoader:
        """Stretches of the points held out, or of all points if none are."""
        return self._pieces("val")

    def test_dataloader(self) -> PieceLoader:
        """Stretches of the whole signal."""
        return self._pieces("test")

    def predict_dataloader(self) -> PieceLoader:
        """Stretches of the whole signal's coordinates."""
        return self._pieces("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Make the batch that a loader's number stands for, of tensors that live on the device.

        Args:
            batch: what one of the loaders yielded; anything else is moved as usual.
            device: where the network is.
            dataloader_idx: not used.
        """
        if isinstance(batch, Piece):
            coordinates, values = self._points.of(self._part(batch.loop), device)
            coordinates = coordinates[batch.start : batch.stop]
            return coordinates if batch.loop == "predict" else (coordinates, values[..., batch.start : batch.stop, :])
        if isinstance(batch, int):
            return self.batch(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def batch(self, step: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Make the batch of a training step; always the same for the same step, rank and kind of device.

        Args:
            step: number of the step, as the training loader gives it.
            device: where the batch is to be.

        Returns:
            Coordinates [N, d] and values [N, c], of S signals [S, N, c].
        """
        device = torch.device(device)
        part = self._part("train")
        if self.points_per_step is None:
            coordinates, values = self._points.of(part, device)
            return coordinates.detach(), values.detach()  # others of the same memory: `requires_grad_` ends with them
        rank = 0 if self.trainer is None else self.trainer.global_rank
        return self._points.draw(part, device, self.points_per_step, (self.seed, rank, step))

    def _read(self) -> Signal:
        values, data_range = read_signals(self.sources, self.recipe)
        if values.abs().max() > _UNUSUAL:
            rank_zero_warn(
                f"the signal's values run from {values.min():g} to {values.max():g}: networks and their learning rates "
                "are made for [0, 1] or [-1, 1], so scale it to one of these"
            )
        return Signal(
            values,
            self.coordinate_range,
            stacked=self.num_signals > 1,
            data_range=data_range if self._data_range is None else self._data_range,
        )

    def _part(self, loop: Literal["train"] | Loop) -> Part:
        if self.split == "all" or loop in ("test", "predict"):
            return "whole"
        return "train" if loop == "train" else "val"

    @property
    def _points(self) -> SignalPoints:
        if self._kept is None:
            # Validation may ask first, in inference mode, whose tensors could not be trained on.
            with torch.inference_mode(False):
                self._kept = SignalPoints(self.signal, self.train_mask, self._converted)
        return self._kept

    def _converted(self, tensor: Tensor) -> Tensor:
        """To the Trainer's precision, which Lightning would see to if its loaders yielded tensors."""
        if self.trainer is None:
            return tensor
        converted: Tensor = self.trainer.precision_plugin.convert_input(tensor)
        return converted

    def _pieces(self, loop: Loop) -> PieceLoader:
        rank, ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        points = self._points.count(self._part(loop))
        return PieceLoader(cut(loop, points, max(1, self.eval_points // self.num_signals), rank, ranks))

    def _count_done(self) -> int | None:
        """Batches that the run has trained on; ``completed``, because one that was broken off is trained on again."""
        if self.trainer is None or not self.trainer.training:
            return None
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.completed)

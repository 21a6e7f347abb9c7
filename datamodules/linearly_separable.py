"""Two classes that one direction of input space tells apart, and nothing else does.

Ortiz-Jimenez, Modas, Moosavi-Dezfooli, Frossard, "Neural anisotropy directions", NeurIPS 2020,
https://arxiv.org/abs/2006.09717; drawn as in Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, NeurIPS 2021,
https://arxiv.org/abs/2106.06770.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pl_robust._lightning import LightningDataModule, rank_zero_info, unsavable
from pl_robust._number import check_count, check_seed, parse_number
from pl_robust.datamodules._direction import pick_direction, read_direction
from pl_robust.datamodules._image_dataset import ImageDataset, collate_images
from pl_robust.datamodules._task_net import (
    check_same_task,
    frozen_copy,
    on_one_process,
    task_net,
)
from pl_robust.ntk import neural_anisotropy_directions

_SPLITS = ("train", "val", "test")
_PUBLISHED_SHAPE = (1, 32, 32)
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",), None: _SPLITS}


class LinearlySeparableDataModule(LightningDataModule):
    r"""Loaders of (x, y): :math:`x = (2 y - 1)\, \frac{\epsilon}{2}\, u + w`, with a unit vector u and noise w.

    w is normal with standard deviation ``sigma`` in all directions but u, where it is 0: a linear classifier along u is
    always right, and nothing else tells the classes apart. How hard a network finds that depends on u: the first of its
    ``neural_anisotropy_directions`` are learned at once, the last hardly or not at all. Labels are 0 and 1 by the toss
    of a coin; x is float32 [B, C, H, W], not in [0, 1].

    Everything is drawn once, at ``setup``, by ``seed``: the same on every rank and in every run, and independent in the
    three splits. ``predict`` runs over the test data. The direction is part of the checkpoint: a resumed run goes on
    with a network's, and is refused where other settings or another direction are given.

    Args:
        direction: u: a tensor [C, H, W], or several [K, C, H, W] of which ``index`` picks one; or a file of such a
            tensor, .npy or .pt. Its length does not matter. None: the direction of that index of ``model``.
        index: which direction, counted from 0.
        model: network whose ``neural_anisotropy_directions`` are meant, copied as it is; None: the one that the Trainer
            trains, the ``net`` of its module (or the module itself), with its weights before training, as published.
        output: which output of the network, if it has several.
        image_shape: (C, H, W); None: that of a given direction, and (1, 32, 32) for that of a network.
        eps: distance of the classes along u, a number or a fraction such as ``"1/2"``.
        sigma: standard deviation of the noise, at least 0, likewise.
        train_size: number of training images; 10,000 of them and as many test images are published.
        val_size: number of validation images; 0: no validation loader.
        test_size: number of test images.
        batch_size: training images per batch and per rank.
        eval_batch_size: likewise for validation, test and predict.
        num_workers: loader processes. Images in memory need none.
        seed: of the data.
        pin_memory: copy batches to pinned memory, for a GPU.

    Attributes:
        num_classes: 2.
        image_shape: (C, H, W).
        direction: u, float32 [C, H, W], from ``setup`` on (a network's in a Trainer: from the first loader on); None
            before.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument is not as described; a file is read in ``setup``, and so is the network asked (in a
            Trainer: at the first loader, by when a checkpoint has been restored); if a checkpoint's task is another.
        RuntimeError: in ``setup``, if the direction is that of a network, and there is neither ``model`` nor a Trainer.
    """

    def __init__(
        self,
        direction: Tensor | str | os.PathLike[str] | None = None,
        index: int = 0,
        model: nn.Module | None = None,
        output: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        eps: float | str = 1.0,
        sigma: float | str = 1.0,
        train_size: int = 10_000,
        val_size: int = 1_000,
        test_size: int = 10_000,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(direction, os.PathLike):
            direction = os.fspath(direction)  # a Path could not be read back
        self.save_hyperparameters(ignore=unsavable(direction=direction, model=model), logger=False)
        if direction is not None and not isinstance(direction, Tensor | str):
            raise TypeError(f"`direction` must be a tensor, a path or None, got {type(direction).__name__}")
        if direction is not None and model is not None:
            raise ValueError("`direction` and `model` must not both be given: the direction is one or the network's")
        check_count(index, "index", least=0)
        if output is not None:
            check_count(output, "output", least=0)
            if direction is not None:
                raise ValueError(
                    "`output` and `direction` must not both be given: it says which output of a network has the "
                    f"direction, got {output}"
                )
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            check_count(size, name)
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            check_count(size, name)
        for name, size in (("val_size", val_size), ("num_workers", num_workers)):
            check_count(size, name, least=0)
        check_seed(seed)
        if not isinstance(pin_memory, bool):
            raise TypeError(f"`pin_memory` must be true or false, got {pin_memory!r}")
        self.eps, self.sigma = parse_number(eps, "eps"), parse_number(sigma, "sigma")
        if not (0 < self.eps < math.inf and 0 <= self.sigma < math.inf):
            raise ValueError(
                f"`eps` must be positive and `sigma` at least 0, both finite, got eps={eps!r} and sigma={sigma!r}"
            )
        self.sizes = dict(zip(_SPLITS, (train_size, val_size, test_size), strict=True))
        self.index = index
        self.output = output
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.pin_memory = pin_memory
        self.direction: Tensor | None = None
        self._given = direction
        self._model = None if model is None else frozen_copy(model)
        self._image_shape = None if image_shape is None else _check_shape(image_shape)
        if isinstance(direction, Tensor):
            self.direction = self._checked(pick_direction(direction, index))
        self._sets: dict[str, ImageDataset] = {}
        self._wanted: set[str] = set()
        self._net: nn.Module | None = None  # as it was in `setup`, on rank zero

    @property
    def num_classes(self) -> int:
        """2: the two sides."""
        return 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W): the direction's; a file is read for it."""
        if self.direction is None and not isinstance(self._given, str):
            return _PUBLISHED_SHAPE if self._image_shape is None else self._image_shape
        channels, height, width = self._find().shape
        return channels, height, width

    def setup(self, stage: str | None = None) -> None:
        """Find the direction, and draw what the stage needs and was not drawn before.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all.
        """
        if stage not in _STAGES:
            raise ValueError(f"`stage` must be fit, validate, test, predict or None, got {stage!r}")
        self._wanted.update(split for split in _STAGES[stage] if self.sizes[split])
        if self.trainer is None or self._given is not None or self.direction is not None:
            self._draw_wanted()
        else:  # a checkpoint may have the direction, and is restored after this
            on_one_process(self.trainer, self._keep_net)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation batches in fixed order; with ``val_size`` 0 an empty list: Lightning says so and goes on."""
        return self._loader("val") if self.sizes["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test batches, with labels."""
        return self._loader("test")

    def state_dict(self) -> dict[str, Any]:
        """The direction, and the settings of the task."""
        return {"direction": self.direction, "task": self._task()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the direction of a checkpoint.

        Raises:
            ValueError: if its task is another one.
        """
        check_same_task(state_dict["task"], self._task())
        stored = state_dict["direction"]
        if self._given is not None:
            own = self._find()
            if stored is not None and (own.shape != stored.shape or not torch.allclose(own, stored, atol=1e-6)):
                raise ValueError(
                    "the checkpoint's task has another `direction` than the given one: give that, or load the weights "
                    "only (load_from_checkpoint)"
                )
        elif stored is not None and (self.direction is None or not torch.equal(stored, self.direction)):
            self.direction = stored
            self._sets = {split: self._draw(split, stored) for split in self._sets}

    def _task(self) -> dict[str, Any]:
        """What defines the task, beside the direction itself."""
        of_network = self._given is None
        return {
            "direction": "a network's" if of_network else "given",
            "index": self.index,
            "output": self.output,
            "image_shape": list(self.image_shape) if of_network else None,  # a given one has it
            "eps": self.eps,
            "sigma": self.sigma,
            "seed": self.seed,
            **{f"{split}_size": size for split, size in self.sizes.items()},
        }

    def _draw_wanted(self) -> None:
        direction = self._find()
        for split in _SPLITS:
            if split in self._wanted and split not in self._sets:
                self._sets[split] = self._draw(split, direction)

    def _find(self) -> Tensor:
        """Give the direction, and find it first if need be: a collective call if it is a network's."""
        if self.direction is None:
            if isinstance(self._given, str):
                self.direction = self._checked(read_direction(self._given, self.index))
            else:
                self.direction = on_one_process(self.trainer, self._of_network)
        return self.direction

    def _keep_net(self) -> None:
        self._net = task_net(self, self._model)

    def _of_network(self) -> Tensor:
        net, shape = task_net(self, self._model) if self._net is None else self._net, self.image_shape
        self._net = None
        rank_zero_info(f"Looking for anisotropy direction {self.index} of {type(net).__name__} at {shape}")
        directions, _ = neural_anisotropy_directions(net, shape, self.index + 1, output=self.output)
        return pick_direction(directions, self.index)

    def _checked(self, direction: Tensor) -> Tensor:
        if self._image_shape is not None and tuple(direction.shape) != self._image_shape:
            raise ValueError(
                f"`image_shape` must be that of the given direction, {tuple(direction.shape)}, or None, got "
                f"{self._image_shape}"
            )
        return direction

    def _draw(self, split: str, direction: Tensor) -> ImageDataset:
        # A generator for each split, so that none depends on the size of another.
        seeds = torch.randint(2**62, (len(_SPLITS),), generator=torch.Generator().manual_seed(self.seed))
        generator = torch.Generator().manual_seed(int(seeds[_SPLITS.index(split)]))
        y = torch.randint(2, (self.sizes[split],), generator=generator)
        u = direction.flatten()
        x = self.sigma * torch.randn(len(y), len(u), generator=generator)
        wanted = self.eps / 2 * (2 * y - 1)
        for _ in range(2):  # the second time takes away what rounding has left
            x.addr_(wanted - x @ u, u)
        return ImageDataset(x.view(-1, *direction.shape), y, levels=1)  # floats pass it as they are

    def _loader(self, split: str) -> DataLoader[Any]:
        if split in self._wanted:
            with torch.inference_mode(False):
                self._draw_wanted()
        if split not in self._sets:
            raise RuntimeError(f"the {split} images have not been drawn: call setup() first, as the Trainer does")
        return DataLoader(
            self._sets[split],
            batch_size=self.batch_size if split == "train" else self.eval_batch_size,
            shuffle=split == "train",
            num_workers=self.num_workers,
            collate_fn=collate_images,
            pin_memory=self.pin_memory,
        )


def _check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(sizes) != 3 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"`image_shape` must be (C, H, W), three positive integers, got {shape!r}")
    channels, height, width = sizes
    return channels, height, width

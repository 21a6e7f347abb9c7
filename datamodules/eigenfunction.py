"""Binary tasks that a network's tangent kernel finds easy or hard: the signs of its eigenfunctions.

Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "What can linearized neural networks actually say about generalization?",
NeurIPS 2021, https://arxiv.org/abs/2106.06770.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pl_robust._dataloaders import flatten_loaders
from pl_robust._generators import kept_generators
from pl_robust._lightning import LightningDataModule, unsavable
from pl_robust._number import check_count, check_seed
from pl_robust._probe import probe
from pl_robust.datamodules._kernel_points import KernelPoints, check_indexed, read_points
from pl_robust.datamodules._pending_corruption import indexed_loader
from pl_robust.datamodules._relabel import Relabel, Standardize, channel_statistics
from pl_robust.datamodules._stored_eigen import eigenfunctions
from pl_robust.datamodules._task_net import (
    check_same_task,
    frozen_copy,
    on_one_process,
    task_net,
)
from pl_robust.datamodules._wrapper import DataModuleWrapper, _overrides
from pl_robust.ntk import NTKEigen

_SPLITS = {"train": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}


class EigenfunctionDataModule(DataModuleWrapper):
    """Another datamodule's inputs, labelled by the sign of an eigenfunction of a network's tangent kernel.

    The labels of a whole family of tasks on the same inputs, from easy to hard for the linearized network: class 1
    where the eigenvector of the ``index``-th largest eigenvalue of the empirical NTK is positive, class 0 where it is
    not. It is the kernel at all points of the data, as published: those of the training, validation and test data
    together, each once (validation data that is part of the training or test data adds nothing). So labels are known at
    the test points without a rule that extends them, and what is learned is judged against the eigenfunction itself.
    All samples of a loader's data set count, whatever its sampler takes. The sign of an eigenvector means nothing; here
    its entry of largest magnitude is positive. Classes need not be balanced: the first eigenfunction of inputs that are
    not centred often has one sign only.

    The kernel is decomposed by rank zero for all, in the network's eval mode and with its weights in the first
    ``setup``; in a Trainer not before the first loader is asked for, by when a checkpoint has been restored.
    ``cache_dir`` keeps the result for further runs and indices. The labels are part of the checkpoint, so that a
    resumed run goes on with the task that it began, a test has the task that was learned, and neither decomposes
    anything. Refused are another task than the checkpoint's (index, method, outputs, landmarks, seed, standardize), and
    other inputs or the same ones in another order, to which its labels do not belong.

    The base keeps its own say, with these exceptions: its labels are replaced, and the inputs of its training,
    validation and test data must be the same at each reading, for a label belongs to a sample: no random augmentation
    in its data sets. A callback such as ``PRIMETransform`` may still augment the training batches, and the labels stay
    those of the samples. ``predict`` runs over the base's predict data with the labels that it has.

    Args:
        base: the datamodule to relabel; its loaders must be torch DataLoaders over data sets with indices (alone, or in
            lists and dicts), and there must be training data. What it does to a batch on its way to the device is not
            seen by the kernel.
        model: the network whose kernel it is, copied as it is; None: the one that the Trainer trains, which is the
            ``net`` of its module (or the module itself), with its weights before training, as published.
        index: which eigenfunction, 0 is that of the largest eigenvalue.
        k: how many eigenfunctions to find, more than ``index``; None: just enough. With ``cache_dir``, tasks of the
            same k share one decomposition.
        method: ``dense``, ``lanczos`` or ``nystrom``, see ``ntk_eigh``.
        outputs: ``trace``, the kernel summed over the network's outputs, or the index of an output.
        landmarks: of Nyström's method: how many points to draw, or which (training points come first).
        chunk_size: inputs in a forward of the network; None chooses by memory.
        seed: of Nyström's landmarks and of Lanczos' start.
        standardize: shift and scale each channel (dimension 1 of a batch of inputs) to mean 0 and standard deviation 1
            over the training data, as published; a constant one is only shifted. The kernel is that of these inputs.
        cache_dir: folder for the decompositions, by a checksum of points, weights, the network's repr and the settings.
            What its ``forward`` does beyond its repr is not seen: after changing such code, empty the folder.
        input_key: where a batch of ``base`` has its inputs: position in a sequence, key in a dict.
        label_key: where it has the labels that are replaced, likewise.

    Attributes:
        num_classes: 2.
        eigen: eigenvalues [k], largest first, and eigenvectors [N, k], on the CPU, from ``setup`` on, in a Trainer from
            the first loader on. Rows are the points in their data sets' order: those of the training data, then of
            validation and test what is new. None if the labels came from a checkpoint.
        mean, std: of each channel, float32 [C], with ``standardize``; else None.

    Raises:
        TypeError: if an argument is of another type; when the data is read, if a loader is not as described.
        ValueError: if an argument is not allowed; when the data is read, if inputs change from one reading to the next,
            there is no training data, or there are fewer eigenfunctions than asked for, counting those above rounding,
            with eigenvalues of more than the dtype's epsilon times the largest; for a checkpoint of another task.
        RuntimeError: in ``setup``, if ``model`` is None and there is no Trainer.
    """

    _way_out = "give its data sets to torch DataLoaders"

    def __init__(
        self,
        base: LightningDataModule,
        model: nn.Module | None,
        index: int,
        k: int | None = None,
        method: Literal["dense", "lanczos", "nystrom"] = "dense",
        outputs: Literal["trace"] | int = "trace",
        landmarks: int | Sequence[int] | None = None,
        chunk_size: int | None = None,
        seed: int = 0,
        standardize: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        input_key: int | str = 0,
        label_key: int | str = 1,
    ) -> None:
        super().__init__(base)
        if cache_dir is not None and not isinstance(cache_dir, str | os.PathLike):
            raise TypeError(f"`cache_dir` must be a folder or None, got {cache_dir!r}")
        cache_dir = None if cache_dir is None else os.fspath(cache_dir)  # a Path could not be read back
        if cache_dir is not None and os.path.exists(cache_dir) and not os.path.isdir(cache_dir):
            raise ValueError(f"`cache_dir` must be a folder, got the file {cache_dir!r}")
        self.save_hyperparameters(ignore=unsavable(base=base, model=model), logger=False)
        check_count(index, "index", least=0)
        for name, value in (("k", k), ("chunk_size", chunk_size)):
            if value is not None:
                check_count(value, name)
        if k is not None and k <= index:
            raise ValueError(f"`k` must be more than `index`={index}, which counts from 0, got {k}")
        methods = ("dense", "lanczos", "nystrom")
        if method not in methods:
            raise ValueError(f"`method` must be one of {methods}, got {method!r}")
        if (method == "nystrom") != (landmarks is not None):
            raise ValueError(
                "`landmarks`, how many points or which, must come with method='nystrom' and with no other, got "
                f"method={method!r}, landmarks={landmarks!r}"
            )
        _check_landmarks(landmarks)
        check_seed(seed)
        if input_key == label_key:
            raise ValueError(
                f"`input_key` and `label_key` must be different entries of a batch, got {input_key!r} twice"
            )
        if outputs != "trace" and (isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 0):
            raise ValueError(f"`outputs` must be 'trace' or the index of an output, got {outputs!r}")
        if not isinstance(standardize, bool):
            raise TypeError(f"`standardize` must be true or false, got {standardize!r}")
        self.index = index
        self.k = index + 1 if k is None else k
        self.seed = seed
        self.standardize = standardize
        self.cache_dir = cache_dir
        self.eigen: NTKEigen | None = None
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        self._settings = {"method": method, "outputs": outputs, "landmarks": landmarks, "chunk_size": chunk_size}
        self._keys = (input_key, label_key)
        self._model = None if model is None else frozen_copy(model)
        self._labels: dict[str, list[Tensor]] | None = None
        self._is_set_up = False
        self._net: nn.Module | None = None  # as it was in `setup`, on rank zero
        # Of the base's data, and of that which the labels of a checkpoint belong to.
        self._digests: dict[str, str] | None = None
        self._stored_digests: dict[str, str] | None = None
        for name in ("state_dict", "load_state_dict"):  # which the wrapper has bound to the base's
            vars(self).pop(name, None)

    @property
    def num_classes(self) -> int:
        """2: an eigenfunction has two signs."""
        return 2

    def setup(self, stage: str | None = None) -> None:
        """Let the base read its data; the first time all of it, for the labels, unless it is only to predict.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all.
        """
        is_needed = not self._is_set_up and (stage != "predict" or self.standardize)
        if is_needed:
            for other in ("fit", "test"):
                if stage not in (other, None) and (other == "fit" or _overrides(self.base, "test_dataloader")):
                    super().setup(other)
        super().setup(stage)
        if is_needed:
            self._is_set_up = True
            if self._labels is None:
                on_one_process(self.trainer, self._keep_net)
            if self.trainer is None:
                self._prepare()

    def train_dataloader(self) -> Any:
        """The base's training batches, relabelled."""
        return self._relabel("train", self.base.train_dataloader())

    def val_dataloader(self) -> Any:
        """The base's validation batches, relabelled."""
        return self._relabel("validation", self.base.val_dataloader())

    def test_dataloader(self) -> Any:
        """The base's test batches, relabelled."""
        return self._relabel("test", self.base.test_dataloader())

    def state_dict(self) -> dict[str, Any]:
        """The labels, whose they are, what the inputs are standardized by, and the base's state."""
        return {
            "base": self.base.state_dict(),
            "task": self._task(),
            "labels": self._labels,
            "digests": self._digests or self._stored_digests,
            "mean": self.mean,
            "std": self.std,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the labels of a checkpoint.

        Raises:
            ValueError: if its task is another one, or its labels belong to other data.
        """
        check_same_task(state_dict["task"], self._task())
        self.base.load_state_dict(state_dict["base"])
        stored = state_dict["labels"]
        if stored is None:
            return
        self._stored_digests = state_dict["digests"]
        self._check_digests(self._digests)
        if self._labels is None or not _equal(stored, self._labels):
            self.eigen = None
        self._labels, self.mean, self.std = stored, state_dict["mean"], state_dict["std"]

    def _task(self) -> dict[str, Any]:
        """The settings that define the task."""
        landmarks = self._settings["landmarks"]
        return {
            "index": self.index,
            **{name: self._settings[name] for name in ("method", "outputs")},
            "landmarks": landmarks if landmarks is None or isinstance(landmarks, int) else list(landmarks),
            "seed": self.seed,
            "standardize": self.standardize,
        }

    def _check_digests(self, digests: dict[str, str] | None) -> None:
        if digests is None or self._stored_digests is None:
            return
        other = [split for split, digest in digests.items() if digest != self._stored_digests.get(split)]
        if other:
            raise ValueError(
                f"the {' and '.join(other)} inputs of `base` are not those of the checkpoint, or stand in another "
                "order, and its labels would go to the wrong samples: give the data and the split that it was made "
                "with, or load the weights only (load_from_checkpoint)"
            )

    def _keep_net(self) -> None:
        self._net = task_net(self, self._model)

    def _prepare(self) -> None:
        """Make the labels, or see whether those of a checkpoint are of this data; a collective call.

        A Trainer restores checkpoints between ``setup`` and the first loader, which is why it is done there.
        """
        if not self._is_set_up or self._digests is not None:
            return
        with probe(nn.Identity()), kept_generators([self.base], depth=4):  # reading draws random numbers
            self._loaders()  # on all ranks: the base's loaders may be made by collective calls, too
            if self._labels is None:
                made = on_one_process(self.trainer, self._make_task)
                self.eigen, self._labels, self._digests, self.mean, self.std = made
            else:
                digests = on_one_process(self.trainer, lambda: self._read().digests)
                self._check_digests(digests)
                self._digests = digests
        self._net = None

    def _make_task(self) -> tuple[NTKEigen, dict[str, list[Tensor]], dict[str, str], Tensor | None, Tensor | None]:
        """Decompose the kernel at the base's inputs, and label each sample of each data set."""
        net = task_net(self, self._model) if self._net is None else self._net
        with probe(net):
            points = self._read()
            x, mean, std = points.x, None, None
            if self.index >= len(x):
                raise ValueError(
                    f"`index` must be 0 to {len(x) - 1}, because there are as many eigenfunctions as points, got "
                    f"{self.index}"
                )
            if self.k > len(x):
                raise ValueError(f"`k` must be at most the number of points, {len(x)}, got {self.k}")
            if self.standardize:
                mean, std = channel_statistics(x[torch.cat(points.rows["train"])])
                x = Standardize(mean, std, 0)(x)
            eigen = eigenfunctions(net, x, self.k, self.cache_dir, self.seed, self._settings)
        # What is below rounding has no sign of its own.
        rank = int((eigen.values > torch.finfo(eigen.values.dtype).eps * eigen.values[0]).sum())
        if self.index >= rank:
            raise ValueError(
                f"`index` must be below the number of eigenvalues above rounding, {rank}, got {self.index}: the others "
                "of this kernel are zero, and their eigenfunctions noise"
            )
        signs = (eigen.vectors[:, self.index] > 0).long()
        labels = {split: [signs[rows] for rows in places] for split, places in points.rows.items()}
        return eigen, labels, points.digests, mean, std

    def _read(self) -> KernelPoints:
        """Read all inputs, twice, because those that change have no labels of their own."""
        # Loaders are asked for anew: a split may be drawn when they are made.
        first, second = (read_points(self._loaders(), self._keys[0]) for _ in range(2))
        changing = [split for split, digest in first.digests.items() if digest != second.digests[split]]
        if changing:
            raise ValueError(
                f"the {changing[0]} inputs of `base` change from one reading to the next, and then none has a label of "
                "its own: leave random augmentation to a callback such as PRIMETransform (ImageDataModule: "
                "augment=False), and draw splits by a seed"
            )
        if not sum(map(len, first.rows["train"])):
            raise ValueError(f"`base` must have training data, {type(self.base).__name__} has none")
        return first

    def _loaders(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for split, name in _SPLITS.items():
            loaders = getattr(self.base, name)() if _overrides(self.base, name) else []
            if type(loaders).__name__ == "CombinedLoader":  # of which namespace ever; check_indexed says why not
                check_indexed(loaders, split)
            found[split] = flatten_loaders(loaders)
        return found

    def _relabel(self, split: str, loaders: Any) -> Any:
        self._prepare()
        if self._labels is None:
            raise RuntimeError(f"the {split} data has no labels yet: call setup() first, as the Trainer does")
        return self._with_labels(split, loaders, iter(self._labels[split]))

    def _with_labels(self, split: str, loaders: Any, labels: Iterator[Tensor]) -> Any:
        """Relabel a loader, or each one in lists and dicts of them, in their order."""
        if isinstance(loaders, Mapping):
            return {name: self._with_labels(split, loader, labels) for name, loader in loaders.items()}
        if isinstance(loaders, list | tuple):
            return [self._with_labels(split, loader, labels) for loader in loaders]
        check_indexed(loaders, split)
        own = next(labels, None)
        if own is None or len(own) != len(loaders.dataset):
            raise RuntimeError(
                f"the {split} data of `base` has {len(loaders.dataset)} samples, and the task has "
                f"{0 if own is None else len(own)} labels for it: it is other data than that of `setup`, or than that "
                "of the checkpoint"
            )
        return self._wrap(indexed_loader(loaders), Relabel(own, self._transform(), self._keys[1]))

    def _transform(self) -> Standardize:
        self._prepare()
        return Standardize(self.mean, self.std, self._keys[0])


def _check_landmarks(landmarks: object) -> None:
    if landmarks is None:
        return
    several = isinstance(landmarks, Sequence) and not isinstance(landmarks, str)
    numbers: list[Any] = list(landmarks) if isinstance(landmarks, Sequence) else [landmarks]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise TypeError(f"`landmarks` must be an integer, or a list of different ones, got {landmarks!r}")
    least = 0 if several else 1
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"`landmarks` must be at least 1, or a list of different indices, of at least one, got {landmarks!r}"
        )


def _equal(some: dict[str, list[Tensor]], others: dict[str, list[Tensor]]) -> bool:
    return some.keys() == others.keys() and all(
        len(some[split]) == len(others[split])
        and all(torch.equal(one, other) for one, other in zip(some[split], others[split], strict=True))
        for split in some
    )

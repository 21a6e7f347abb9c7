"""Follow each training sample through training: how sure the network is of its label, when it learns and forgets it.

Toneva et al., "An empirical study of example forgetting during deep neural network learning", ICLR 2019,
https://arxiv.org/abs/1812.05159; Swayamdipta et al., "Dataset cartography", EMNLP 2020,
https://arxiv.org/abs/2009.10795.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pl_robust._batch import entry_keys, split_batch, take_entry
from pl_robust._dataloaders import uncombined
from pl_robust._figure import publish_figure
from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust._number import check_count
from pl_robust._probe import probe
from pl_robust.attacks import Attack
from pl_robust.callbacks._dynamics_file import append_row, keep_rows, load_dynamics
from pl_robust.callbacks._dynamics_looks import EpochLooks, LooksState, check_range, look
from pl_robust.callbacks._dynamics_report import draw_maps, summarize_dynamics
from pl_robust.callbacks._dynamics_statistics import UNSEEN, SampleStatistics
from pl_robust.callbacks._observer import own_prefix, refuse_split_parameters

_ENDS = {"clean": "", "adversarial": "_adv"}


class LearningDynamics(Callback):
    """Record how each training sample is learned: confidence, variability, correctness, forgetting events.

    Drop it into any Trainer whose module's ``forward(x)`` gives logits [B, K] and whose training batches hold inputs,
    labels and the samples' positions in the data set: ``IndexedDataModule(data)`` adds these to any datamodule. Before
    each training step it asks the network, with the weights and the inputs (augmentation and all) that the step is
    about to see, but in eval mode, for the probability of each sample's label, and whether it is the most probable; on
    clean inputs and, if asked to, on adversarial ones. After the epoch it logs

    * ``dynamics/confidence``: that probability, mean over the samples of this epoch;
    * ``dynamics/learned``: share of all samples seen so far that have been right at least once;
    * ``dynamics/forgetting``: mean number of their forgetting events so far, right at one look and wrong at the next
      (Toneva et al. 2019; a sample that was never right has no event);

    with ``_adv`` behind the name for adversarial inputs, and adds a row to ``dynamics.npz`` in the run's folder, for
    ``LearningDynamics.load(path)``: confidence and correctness as arrays [epochs, samples]. At the end of fit it draws
    the data map (Swayamdipta et al. 2020: confidence over variability, coloured by correctness) and a histogram of the
    forgetting events, to the loggers and as PNG, and names the samples that a network has to memorize. A run without a
    logger writes no file.

    An epoch counts each sample once, at its first look, also where a sampler repeats samples, on this rank or another;
    a sample that an epoch leaves out (``drop_last``, ``limit_train_batches``, a run that ends inside the epoch) has no
    look in it, which is no mistake: NaN and -1 in the file, and the epoch does not count for its statistics.

    It only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as without it. All ranks
    share the work and log the same numbers. A resumed run continues the statistics and the file, from which it cuts
    off the epochs that it repeats (into another folder it copies the file); several can live in one Trainer (the second
    of the same ``prefix`` logs under ``dynamics_2/``). Cost: one forward pass a batch, and for adversarial inputs an
    attack and one more; 33 bytes a sample in the checkpoint, 55 in memory, and twice that for both kinds of inputs.
    It logs after validation: see ``CatastrophicOverfittingDetector`` for a ModelCheckpoint that monitors a value.

    Args:
        attack: looks at its adversarial examples, too, found in eval mode; noise depends on epoch, batch and rank only.
        adversarial: looks at those of the module's training attack, its attribute ``attack`` as it is at the time.
        every_n_epochs: look in every n-th training epoch. Forgetting events are those between looks.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels, integers [B].
        index_key: where a batch holds the samples' positions in the training data set, int64 [B]; of dict batches of
            an ``IndexedDataModule``: ``"index"``.
        prefix: first part of the logged names, and name of the file.

    Attributes:
        statistics: ``"clean"``, and ``"adversarial"`` if looked at -> ``SampleStatistics``: arrays [N] of confidence,
            variability, correctness, first_learned, forgetting, …, and ``ranking()``, the samples prone to be
            memorized first. Empty before fit.
        history: one row for each epoch looked at: epoch, step, samples, and what was logged.

    Raises:
        ValueError: at construction, for a value that is not allowed; at the first batch, for labels out of range,
            positions that are none, or answers that are no logits.
        TypeError: for an argument, labels or positions of another type.
        MisconfigurationException: at the start of fit, if the strategy splits parameters, another callback has the
            numbered prefix, there are several training dataloaders or one without a length of its data, the module has
            no attack that is to be taken, or the checkpoint is of other data; at the first batch, if it holds no
            positions.
    """

    def __init__(
        self,
        attack: Attack | None = None,
        *,
        adversarial: bool = False,
        every_n_epochs: int = 1,
        input_key: str | int = 0,
        label_key: str | int = 1,
        index_key: str | int = 2,
        prefix: str = "dynamics",
    ) -> None:
        super().__init__()
        if attack is not None and not isinstance(attack, Attack):
            raise TypeError(f"`attack` must be an attack such as PGD(eps=8/255), or None, got {attack!r}")
        if not isinstance(adversarial, bool):
            raise TypeError(f"`adversarial` must be True or False, got {adversarial!r}; an attack goes to `attack`")
        check_count(every_n_epochs, "every_n_epochs")
        if not isinstance(prefix, str):
            raise TypeError(f"`prefix` must be a name, got {prefix!r}")
        if not prefix:
            raise ValueError("`prefix` must be a name of at least one letter, got ''")
        self.attack = attack
        self.adversarial = adversarial
        self.every_n_epochs = every_n_epochs
        self.input_key = input_key
        self.label_key = label_key
        self.index_key = index_key
        self.prefix = prefix
        self.statistics: dict[str, SampleStatistics] = {}
        self.history: list[dict[str, float]] = []
        self._logged_as = prefix
        self._looks: EpochLooks | None = None  # of an epoch under way
        self._pending: LooksState | None = None  # looks of an epoch that a checkpoint has cut in two
        self._path: Path | None = None
        self._has_inspected = False

    load = staticmethod(load_dynamics)

    @property
    def state_key(self) -> str:
        """Tell observers apart by what they look at and how they log it."""
        return self._generate_state_key(
            attack=repr(self.attack),
            adversarial=self.adversarial,
            every_n_epochs=self.every_n_epochs,
            keys=[self.input_key, self.label_key, self.index_key],
            prefix=self.prefix,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that strategy and attack are as they must be, and find the prefix."""
        if stage != "fit":
            return
        refuse_split_parameters(self, trainer)
        self._logged_as = own_prefix(self, self.prefix, trainer)
        others: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # the Trainer's connectors set it
        if self._logged_as != self.prefix and any(getattr(one, "prefix", "") == self._logged_as for one in others):
            raise MisconfigurationException(
                f"two callbacks would log under {self._logged_as}/, one as the next of `prefix`={self.prefix!r}: give "
                f"this {type(self).__name__} another `prefix`"
            )
        if self._is_adversarial:
            self._attack_of(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run, or take up the one that is resumed."""
        samples = self._count_samples(trainer)
        views = list(_ENDS)[: 1 + self._is_adversarial]
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            self.history, self.statistics, self._pending, self._path = [], {}, None, None
        if not self.statistics:
            self.statistics = {view: SampleStatistics(samples) for view in views}
        known = len(self.statistics["clean"])
        if known != samples:
            raise MisconfigurationException(
                f"{type(self).__name__}: the checkpoint is of a training data set of {known} samples, this one has "
                f"{samples}: resume on the same data, or start a new run"
            )
        self._looks = EpochLooks(samples, len(views))
        if self._pending is not None and trainer.global_rank == 0:
            self._looks.load_state_dict(self._pending, pl_module.device)
        self._pending = None
        self._has_inspected = False
        directory = trainer.log_dir  # every rank asks: Lightning broadcasts it
        if not trainer.loggers or getattr(trainer, "fast_dev_run", False) or directory is None:
            self._path = None  # a run that logs nowhere leaves no file either
            return
        earlier, self._path = self._path, Path(os.path.abspath(directory)) / f"{self._logged_as}.npz"
        if trainer.is_global_zero:
            self._take_up(earlier)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the batch, if it is time."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or self._looks is None:
            return
        index = self._find_index(batch)
        x, y = split_batch(batch, self.input_key, self.label_key)
        if y.is_floating_point() or y.dtype == torch.bool or y.shape != x.shape[:1]:
            raise TypeError(f"labels must be integers [{len(x)}], one for each sample, got {y.dtype} {list(y.shape)}")
        if index.is_floating_point() or index.dtype == torch.bool or index.shape != y.shape:
            raise TypeError(
                f"the batch's entry `index_key`={self.index_key!r} must be the positions of its {len(y)} samples in "
                f"the data set, integers [{len(y)}], got {index.dtype} {list(index.shape)}: IndexedDataModule gives "
                "them"
            )
        if not len(y):
            return
        check, self._has_inspected = not self._has_inspected, True
        if check:  # of later batches at the epoch's end: it waits for the device
            check_range(index, self._looks.samples)
        order = batch_idx * trainer.world_size + trainer.global_rank
        looks = []
        with probe(pl_module), trainer.precision_plugin.forward_context():
            looks.append(look(pl_module, x, y, check=check))
            if self._is_adversarial:
                generator = torch.Generator(x.device)
                generator.manual_seed((trainer.current_epoch << 40) + order)
                x_adv = self._attack_of(pl_module)(pl_module, x, y, generator=generator)
                looks.append(look(pl_module, x_adv, y, check=False))
        confidence, correct = (torch.stack(parts) for parts in zip(*looks, strict=True))
        self._looks.add(order, index.long(), confidence, correct)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' looks together, remember, write and log."""
        looks, epoch = self._looks, trainer.current_epoch
        if looks is None or (epoch + 1) % self.every_n_epochs:
            return
        self._looks = EpochLooks(looks.samples, looks.views)
        confidence, correct = looks.rows(trainer, pl_module.device)
        seen = correct[0] != UNSEEN
        # An epoch that is over cannot be looked at again, even if a resumed run ends it once more.
        if not seen.any() or (self.history and self.history[-1]["epoch"] >= epoch):
            return
        values: dict[str, float] = {}
        columns = {}
        for (view, statistics), *row in zip(self.statistics.items(), confidence, correct, strict=True):
            statistics.update(epoch, *row)
            columns[_ENDS[view]] = (row[0], row[1])
            summary = {"confidence": float(row[0][seen].mean(dtype="float64")), **statistics.summary()}
            values |= {f"{name}{_ENDS[view]}": value for name, value in summary.items()}
        if self._path is not None and trainer.is_global_zero:
            append_row(self._path, epoch, columns)
        self.history.append({"epoch": epoch, "step": trainer.global_step, "samples": int(seen.sum()), **values})
        metrics = {f"{self._logged_as}/{name}": value for name, value in values.items()}
        for name, value in metrics.items():
            pl_module.log(
                name,
                value,
                logger=False,
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                reduce_fx="max",  # all ranks have the same value, and the maximum is exact
            )
        for logger in trainer.loggers:
            # Lightning counts steps from 0 in what it logs.
            logger.log_metrics({**metrics, "epoch": epoch}, step=max(0, trainer.global_step - 1))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, publish the figure."""
        self._looks = None
        if not self.history:
            rank_zero_warn(
                f"{type(self).__name__}(every_n_epochs={self.every_n_epochs}) has not looked at any batch: the run "
                "ended before the first epoch was due"
            )
        if not trainer.is_global_zero or not self.history:
            return
        directory = None if self._path is None else str(self._path.parent)
        path = publish_figure(trainer, f"{self._logged_as}/map", draw_maps(self.statistics, self._logged_as), directory)
        pl_module.print(summarize_dynamics(self.statistics, self._logged_as))
        if path is not None:
            pl_module.print(f"Data map: {path}, rows: {self._path}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs. Under DDP every rank has to call this."""
        return {
            "history": [dict(row) for row in self.history],
            "statistics": {view: statistics.state_dict() for view, statistics in self.statistics.items()},
            "looks": self._pending if self._looks is None else self._looks.state_dict(),
            "path": None if self._path is None else str(self._path),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.history = [dict(row) for row in state_dict["history"]]
        self.statistics = {view: SampleStatistics.from_state(state) for view, state in state_dict["statistics"].items()}
        self._pending = state_dict["looks"]
        self._path = None if state_dict["path"] is None else Path(state_dict["path"])

    @property
    def _is_adversarial(self) -> bool:
        return self.adversarial or self.attack is not None

    def _attack_of(self, module: LightningModule) -> Attack:
        attack = getattr(module, "attack", None) if self.attack is None else self.attack
        if not isinstance(attack, Attack):
            raise MisconfigurationException(
                f"{type(self).__name__}(adversarial=True) takes the module's attribute `attack`, and "
                f"{type(module).__name__} has no attack there: give `attack=`, such as PGD(eps=8/255)"
            )
        return attack

    def _count_samples(self, trainer: Trainer) -> int:
        """Count the samples of the training data set.

        Raises:
            MisconfigurationException: if there are several dataloaders, or one that does not tell.
        """
        loader = uncombined(trainer.train_dataloader)  # Lightning 1.9 wraps a single one, too
        if isinstance(loader, Mapping | list | tuple):
            raise MisconfigurationException(
                f"{type(self).__name__} follows the samples of one training dataloader, got a {type(loader).__name__} "
                f"of {len(loader)}: give the Trainer one, of a ConcatDataset for example"
            )
        try:
            return len(loader.dataset)
        except (AttributeError, TypeError):
            raise MisconfigurationException(
                f"{type(self).__name__} follows the samples of a data set of known length, and {type(loader).__name__} "
                "has none: give a torch DataLoader of a data set with __getitem__ and __len__, in an IndexedDataModule"
            ) from None

    def _find_index(self, batch: Any) -> Tensor:
        keys = entry_keys(batch)
        if keys is not None and self.index_key not in keys:
            raise MisconfigurationException(
                f"{type(self).__name__} must know which samples a batch holds, and `index_key`={self.index_key!r} is "
                f"not among its entries {keys}: wrap the data, IndexedDataModule(datamodule), or set `index_key` to "
                "where the samples' positions are"
            )
        return take_entry(batch, self.index_key, "index_key")

    def _take_up(self, earlier: Path | None) -> None:
        """Bring the file to where the history stands. Called on rank zero."""
        path = self._path
        epochs = [int(row["epoch"]) for row in self.history]
        if path is None:
            return
        if earlier is not None and earlier != path and earlier.exists() and epochs:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(earlier, path)
        elif not epochs and path.exists():
            rank_zero_warn(f"{type(self).__name__} replaces the file of an earlier run, {path}")
        missing = sorted(set(epochs) - set(keep_rows(path, max(epochs, default=-1))))
        if missing:
            rank_zero_warn(
                f"{type(self).__name__}: {path} goes on without its rows of the epochs {missing}, which are not in "
                f"{earlier or 'this folder'}; the statistics have them"
            )

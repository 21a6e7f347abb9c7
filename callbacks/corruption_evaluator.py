"""Evaluate a network under the common corruptions while it is validated or tested."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from pl_robust._batch import split_batch
from pl_robust._dataloaders import flatten_loaders
from pl_robust._lightning import (
    Callback,
    LightningModule,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from pl_robust._number import check_count
from pl_robust.attacks._target import Normalization, check_choices
from pl_robust.callbacks._corruption_suite import CorruptionSuite
from pl_robust.callbacks._corruption_table import CorruptionTable, publish_table
from pl_robust.callbacks._observer import own_prefix, refuse_split_parameters
from pl_robust.callbacks._places import Places, find_loader
from pl_robust.metrics import MeanCorruptionError
from pl_robust.metrics._baseline import CLEAN, Baseline
from pl_robust.metrics._corruption_names import corruption_names
from pl_robust.transforms._corruptions.tables import TableName
from pl_robust.transforms.corruption import table_for


class CorruptionEvaluator(Callback):
    """Evaluate any classifier under common corruptions: the accuracy at each type and severity, their mean, and mCE.

    Drop it into any Trainer whose module's ``forward(x)`` gives logits [B, K] and whose batches hold images in [0, 1]
    and labels. While ``trainer.validate`` or ``trainer.test`` runs, or, with ``every_n_epochs``, the validation inside
    ``fit``, it corrupts each batch as it passes, on its device, in all types and severities (Hendrycks & Dietterich
    2019; ``transforms.corrupt``), and counts the module's answers in eval mode. No image is stored. It logs

    * ``corruption/clean/acc``: accuracy without corruption, on the same images;
    * ``corruption/<name>/acc``: accuracy under each type, mean over severities;
    * ``corruption/mean_acc``: their mean;
    * ``corruption/mce``: mean corruption error in percent (``metrics.MeanCorruptionError``),

    where ModelCheckpoint and EarlyStopping find them (with ``every_n_epochs=n`` they need
    ``ModelCheckpoint(every_n_epochs=n)`` and ``EarlyStopping(strict=False)``: between the checks there is no value);
    and, after ``validate``, ``test`` or ``fit``, prints the usual table and leaves it, if there is a logger, in the
    run's folder as CSV and Markdown, with a heat map that goes to the loggers, too.

    An image's corruption is drawn from its index in the data set: it looks the same in every check, on any number of
    ranks, in any batch size, and as in ``CorruptedImageDataModule``. (Iterable data has no index, and a sampler of
    your own may leave images out: there it is the place in the order in which images come.) Images that
    ``DistributedSampler`` repeats are not counted twice.

    It only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as without it. The history
    survives a resume; several can live in one Trainer (the second of the same ``prefix`` logs under ``corruption_2/``).

    The whole benchmark takes 75 forward passes, and 75 corruptions, for each one of validation; Lightning's progress
    bar counts the batches. ``max_samples``, fewer ``severities`` and a larger ``every_n_epochs`` make it cheaper.

    Args:
        corruptions: ``"benchmark"``: the 15 types of the benchmark; ``"all"``: those and the 4 extra ones; or a list of
            names.
        severities: which of 1 to 5.
        table: whose constants: ``"cifar"``, ``"tiny_imagenet"`` or ``"imagenet"``; None takes them by the images'
            shorter side, up to 48 pixels, up to 96, and above.
        baseline: what mCE divides by: ``"alexnet"`` as ImageNet-C has it, or error rates by name; None divides by
            nothing, as usual for CIFAR-10-C: see ``MeanCorruptionError``.
        every_n_epochs: evaluate in the validation of every n-th epoch of ``fit``; None: in ``validate`` and ``test``
            only.
        max_samples: evaluate the first images of the dataloader only; None means all of them.
        loader: which of several dataloaders: its index, or its name if they come in a dict.
        normalization: (mean, std) per channel of data that is normalized before it reaches the module.
        input_key: where a batch holds its images: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.
        prefix: first part of the logged names and of the files'.

    Attributes:
        history: one row for each check: stage (``"fit"``, ``"validate"`` or ``"test"``), epoch, step, samples, table,
            clean_acc, mean_acc, mce, and by type acc (one per severity) and ce (in percent). A new fit begins anew.

    Raises:
        ValueError: at construction, for a value that is not allowed; at a batch that has them, for images outside
            [0, 1], labels out of range, or answers that are no logits.
        TypeError: for an argument or images of another type.
        MisconfigurationException: if the strategy splits parameters, there is no such dataloader, or it shuffles.
    """

    def __init__(
        self,
        corruptions: Literal["benchmark", "all"] | Sequence[str] = "benchmark",
        severities: Sequence[int] = (1, 2, 3, 4, 5),
        *,
        table: TableName | None = None,
        baseline: Baseline | None = None,
        every_n_epochs: int | None = None,
        max_samples: int | None = None,
        loader: int | str = 0,
        normalization: Normalization | None = None,
        input_key: str | int = 0,
        label_key: str | int = 1,
        prefix: str = "corruption",
    ) -> None:
        super().__init__()
        names = corruption_names(corruptions)
        if table is not None and table not in get_args(TableName):
            raise ValueError(f"`table` must be one of {', '.join(get_args(TableName))} or None, got {table!r}")
        for argument, count in (("every_n_epochs", every_n_epochs), ("max_samples", max_samples)):
            if count is not None:
                check_count(count, argument)
        if isinstance(loader, bool) or not isinstance(loader, int | str):
            raise TypeError(f"`loader` must be the index or the name of a dataloader, got {loader!r}")
        check_choices(normalization, "eval")
        # Made once here, so that what is wrong with its arguments is said now.
        metric = MeanCorruptionError(names, severities, baseline=baseline)
        self.baseline = baseline
        self.every_n_epochs = every_n_epochs
        self.max_samples = max_samples
        self.loader = loader
        self.input_key = input_key
        self.label_key = label_key
        self.prefix = prefix
        self.history: list[dict[str, Any]] = []
        self._suite = CorruptionSuite(names, metric.severities, table, normalization)
        self._logged_as = prefix
        self._has_announced = False
        self._has_inspected = False
        self._has_news = False  # a row that has not been reported
        # Of the evaluation under way:
        self._places: Places | None = None
        self._metric: MeanCorruptionError | None = None
        self._index = 0
        self._table: TableName | None = None

    @property
    def state_key(self) -> str:
        """Tell evaluators apart by what they evaluate and how they log it."""
        return self._generate_state_key(
            corruptions=list(self._suite.corruptions),
            severities=list(self._suite.severities),
            table=self._suite.table,
            baseline=repr(self.baseline),
            every_n_epochs=self.every_n_epochs,
            max_samples=self.max_samples,
            loader=self.loader,
            normalization=repr(self._suite.normalization),
            keys=[self.input_key, self.label_key],
            prefix=self.prefix,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the strategy can be watched and the corruptions can be made, and find the prefix."""
        if stage == "predict":
            return
        refuse_split_parameters(self, trainer)
        self._logged_as = own_prefix(self, self.prefix, trainer)
        self._has_announced = self._has_inspected = False
        if stage != "fit" or self.every_n_epochs is not None:
            self._suite.rehearse()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            self.history = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, if it is time."""
        in_fit = trainer.state.fn == "fit"
        is_due = not in_fit or (self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        # The sanity check looks at the first batch, so that what is wrong is said before an epoch has been spent.
        self._begin(trainer, pl_module, bool(is_due) or (trainer.sanity_checking and self.every_n_epochs is not None))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin(trainer, pl_module, True)

    # At the start of a batch: the step may change it (normalize it, say).

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Evaluate the batch."""
        self._evaluate(trainer, pl_module, batch, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Evaluate the batch."""
        self._evaluate(trainer, pl_module, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' counts together, remember and log."""
        self._finish(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' counts together, remember and log."""
        self._finish(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, if it was ``trainer.validate``."""
        if trainer.state.fn != "fit":
            self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the last check of the training."""
        if self.every_n_epochs is not None:
            self._report(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {"history": copy.deepcopy(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.history = copy.deepcopy(state_dict["history"])

    def _begin(self, trainer: Trainer, pl_module: LightningModule, is_due: bool) -> None:
        self._places = self._metric = None
        if not is_due:
            return
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        self._index = find_loader(loaders, self.loader)
        self._places = Places(flatten_loaders(loaders)[self._index], trainer, self.max_samples)
        if trainer.sanity_checking:
            return
        names, severities = self._suite.corruptions, self._suite.severities
        self._metric = MeanCorruptionError(names, severities, baseline=self.baseline).to(pl_module.device)
        none = torch.empty(0, dtype=torch.long, device=pl_module.device)
        self._metric.update(none, none, CLEAN, 0)  # torchmetrics warns of a rank that has had no image
        if not self._has_announced:
            self._has_announced = True
            rank_zero_info(
                f"{type(self).__name__}: {len(names)} corruptions x {len(severities)} severities, "
                f"{len(names) * len(severities) + 1} more forward passes for each batch of this evaluation"
            )

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int) -> None:
        if self._places is None or dataloader_idx != self._index:
            return
        x, y = split_batch(batch, self.input_key, self.label_key)
        places = self._places.take(len(y))
        x, y = x[: len(places)], y[: len(places)]
        if not places:
            return
        if self._metric is not None:
            self._table = self._suite.table or table_for(x.shape)
            self._suite.count(trainer, pl_module, x, y, places, self._metric)
        elif not self._has_inspected:
            self._has_inspected = True
            self._suite.inspect(trainer, pl_module, x, y)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric, self._metric, self._places = self._metric, None, None
        if metric is None:
            return
        samples = int(trainer.strategy.reduce(metric.clean_total.clone(), reduce_op="sum"))  # it works in place
        if samples == 0:
            rank_zero_warn(f"{type(self).__name__} has seen no image: the dataloader `loader`={self.loader!r} is empty")
            return
        by_type = dict(zip(metric.corruptions, metric.accuracies().tolist(), strict=True))
        means = {name: sum(row) / len(row) for name, row in by_type.items()}
        row = {
            "stage": _stage(trainer),
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "samples": samples,
            "table": trainer.strategy.broadcast(self._table),  # a rank may have had no image
            "clean_acc": float(metric.clean_accuracy()),
            "mean_acc": sum(means.values()) / len(means),
            "mce": float(metric.compute()),
            "acc": by_type,
            "ce": dict(zip(metric.corruptions, metric.corruption_errors().tolist(), strict=True)),
        }
        self.history.append(row)
        self._has_news = True
        values = {"clean/acc": row["clean_acc"], **{f"{name}/acc": mean for name, mean in means.items()}}
        for name, value in {**values, "mean_acc": row["mean_acc"], "mce": row["mce"]}.items():
            pl_module.log(
                f"{self._logged_as}/{name}",
                value,
                prog_bar=name == "mean_acc",
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                reduce_fx="max",  # all ranks have the same value, and the maximum is exact
            )

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, write and draw the last check of this stage."""
        directory = trainer.log_dir  # every rank asks: Lightning broadcasts it
        if not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            directory = None  # a run that logs nowhere leaves no file either
        stage = _stage(trainer)
        rows = [row for row in self.history if row["stage"] == stage]
        if not rows:
            if stage == "fit":
                rank_zero_warn(
                    f"{type(self).__name__}(every_n_epochs={self.every_n_epochs}) has made no check: the run ended "
                    "before the first one was due, or has no validation"
                )
            return
        if trainer.is_global_zero and self._has_news:
            name = f"{self._logged_as}/{'test' if stage == 'test' else 'val'}"
            publish_table(trainer, pl_module, self._tabulate(rows[-1]), name, directory)
        self._has_news = False

    def _tabulate(self, row: dict[str, Any]) -> CorruptionTable:
        whose = "AlexNet's" if self.baseline == "alexnet" else "the baseline's"
        over = "" if self.baseline is None else f", CE over {whose} errors"
        title = (
            f"{self._logged_as}, {row['stage']}, epoch {row['epoch']}, step {row['step']}: {row['samples']} images, "
            f"constants of {row['table']}{over}"
        )
        return CorruptionTable(title, self._suite.severities, row["clean_acc"], row["acc"], row["ce"])


def _stage(trainer: Trainer) -> str:
    """``"fit"``, ``"validate"`` or ``"test"``, as a plain string."""
    return str(getattr(trainer.state.fn, "value", ""))

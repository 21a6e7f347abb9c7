"""Follow how well a classifier's confidence is calibrated, on clean and on adversarial inputs."""

from __future__ import annotations

import copy
from typing import Any, Literal

from pl_robust._batch import split_batch
from pl_robust._dataloaders import count_real, flatten_loaders, loader_names
from pl_robust._figure import publish_figure
from pl_robust._lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    is_before,
    rank_zero_info,
    rank_zero_warn,
)
from pl_robust._number import check_count
from pl_robust.attacks import Attack
from pl_robust.callbacks._calibration_measure import CalibrationGauge
from pl_robust.callbacks._calibration_report import draw_reliability, summarize
from pl_robust.callbacks._observer import refuse_split_parameters
from pl_robust.metrics import CalibrationSummary

# Lightning's own ending, under which it lets nobody log at an epoch's end before 2.5.3.
_NUMBERED = "/{}" if is_before("2.5.3") else "/dataloader_idx_{}"


class CalibrationLogger(Callback):
    """Log how well a classifier's confidence is calibrated, clean and under attack, and its robust-overfitting gap.

    Drop it into any Trainer whose module's ``forward(x)`` gives logits [B, K] and whose batches hold (x, y). In
    validation and test, over all samples of each dataloader, in eval mode, it logs

    * ``val/ece``: expected calibration error in 15 bins of confidence (Guo et al. 2017; ``metrics.Calibration``);
    * ``val/nll``: mean negative log-likelihood of the labels, in nats;
    * ``val/brier``: mean Brier score, from 0 to 2;
    * ``val/ece_adv``, ``val/nll_adv``, ``val/brier_adv``: the same on the attack's inputs;
    * ``val/robust_gap``: the best adversarial accuracy of this fit so far minus the present one (Rice et al. 2020, in
      validation inside ``fit``): robust overfitting, as it grows,

    and ``test/…``; of several dataloaders with their names behind, as ``AdversarialTraining`` has them (with Lightning
    before 2.5.3, of those without names ``val/ece/0``, not ``val/ece/dataloader_idx_0``). ModelCheckpoint
    and EarlyStopping find the values in the validation that gave them, wherever they stand in the list (with
    ``every_n_epochs=n`` they need ``ModelCheckpoint(every_n_epochs=n)`` and ``EarlyStopping(strict=False)``). After
    ``fit``, ``validate`` and ``test`` it prints a table and leaves the reliability diagrams of the last check, clean
    and adversarial side by side: to the loggers and as PNG into the run's folder.

    The attack runs as it is given: not in its form for evaluation, in which PGD leaves a sample at its first
    misclassified iterate, barely wrong, so that the errors would look unsure of themselves. Its noise depends on the
    batch only: two evaluations of one network agree. Samples that a DistributedSampler repeats are not counted. A
    network that answers NaN draws a warning, and its figures are NaN.

    It only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as without it. The history
    survives a resume; several can live in one Trainer. A batch costs one forward pass more; with an attack, its passes
    and one more (PGD with 10 steps: 12 forward and 10 backward passes in all).

    Args:
        attack: the attack; ``"module"`` means the module's attribute ``attack``, as it is when fit, validation or test
            starts, and clean inputs only if there is none; None means clean inputs only.
        bins: number of bins of confidence.
        every_n_epochs: check in the validation of every n-th epoch of ``fit``. (In ``validate`` and ``test`` always.)
        suffix: what stands behind the names of all its values (and before a dataloader's), such as ``"_pgd50"``; the
            second logger of the same suffix has ``_2`` more.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.

    Attributes:
        history: one row for each check and dataloader: stage (``"fit"``, ``"validate"`` or ``"test"``), epoch, step,
            end (the dataloader's part of the names), samples, acc, ece, nll, brier, bins (counts, confidence and
            accuracy by bin; NaN in empty ones); the last five with ``_adv`` behind, and robust_gap, if there was an
            attack. A new fit begins anew.

    Raises:
        ValueError: at construction, for a value that is not allowed; at the first batch (that of the sanity check), for
            logits or labels that are not as they must be, or inputs that the attack refuses.
        TypeError: for an argument, logits or labels of another type.
        MisconfigurationException: if the strategy splits parameters, or another logger has the numbered suffix.
    """

    def __init__(
        self,
        attack: Attack | Literal["module"] | None = "module",
        *,
        bins: int = 15,
        every_n_epochs: int = 1,
        suffix: str = "",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        super().__init__()
        is_module = isinstance(attack, str) and attack == "module"
        if not (attack is None or is_module or isinstance(attack, Attack)):
            raise TypeError(
                "`attack` must be an attack such as PGD(eps=8/255), 'module' for the module's own, or None for clean "
                f"inputs only, got {attack!r}"
            )
        check_count(bins, "bins")
        check_count(every_n_epochs, "every_n_epochs")
        if not isinstance(suffix, str):
            raise TypeError(f"`suffix` must be a string, got {suffix!r}")
        if suffix and (not suffix.isidentifier() or not suffix.startswith("_") or suffix.startswith("_adv")):
            raise ValueError(
                "`suffix` must be '' or an underscore and letters, digits or underscores such as '_pgd50', and must "
                f"not begin with '_adv', which stands for adversarial inputs, got {suffix!r}"
            )
        self.attack = attack
        self.bins = bins
        self.every_n_epochs = every_n_epochs
        self.suffix = suffix
        self.input_key = input_key
        self.label_key = label_key
        self.history: list[dict[str, Any]] = []
        self._logged_as = suffix
        self._running_attack: Attack | None = None  # known when a stage starts
        self._has_warned = False  # of NaN, in this stage
        self._latest: list[dict[str, Any]] = []  # rows of this stage's last check, to be reported
        self._gauges: list[CalibrationGauge] = []  # one for each dataloader, of the evaluation under way

    @property
    def state_key(self) -> str:
        """Tell loggers apart by what they measure and how they log it; the same before fit, in it and after."""
        return self._generate_state_key(
            attack=repr(self.attack),
            bins=self.bins,
            every_n_epochs=self.every_n_epochs,
            suffix=self.suffix,
            keys=[self.input_key, self.label_key],
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the strategy can be watched, take the module's attack, and find the names."""
        if stage == "predict":
            return
        refuse_split_parameters(self, trainer)
        self._logged_as = _own_suffix(self, trainer)
        self._has_warned = False
        self._latest = []
        own = getattr(pl_module, "attack", None)
        if self.attack != "module":
            self._running_attack = self.attack
        elif isinstance(own, Attack):
            self._running_attack = own
        else:
            self._running_attack = None
            rank_zero_info(
                f"{type(self).__name__}: {type(pl_module).__name__} has no attack as its attribute `attack`, so that "
                "calibration is measured on clean inputs only: give `attack=PGD(eps=8/255)`, say, for more"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            self.history = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, if it is time."""
        in_fit = trainer.state.fn == "fit"
        is_due = not in_fit or trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        self._begin(trainer, pl_module, is_due)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin(trainer, pl_module, True)

    # At the start of a batch: the step may change it (normalize it, say).

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take the batch into account."""
        # The sanity check looks at the first batch, so that what is wrong is said before an epoch has been spent.
        if not trainer.sanity_checking or batch_idx == 0:
            self._update(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take the batch into account."""
        self._update(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' sums together, remember and log."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the ranks' sums together, remember and log."""
        self._finish(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, if it was ``trainer.validate``."""
        if trainer.state.fn != "fit":
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer, pl_module, "test")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the last check of the training."""
        self._report(trainer, pl_module, "val")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {"history": copy.deepcopy(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.history = copy.deepcopy(state_dict["history"])

    def _begin(self, trainer: Trainer, pl_module: LightningModule, is_due: bool) -> None:
        loaders = flatten_loaders(trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders)
        self._gauges = [CalibrationGauge(self.bins, self._running_attack, pl_module.device) for _ in loaders if is_due]

    def _update(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        if not self._gauges:
            return
        x, y = split_batch(batch, self.input_key, self.label_key)
        loaders = flatten_loaders(trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders)
        real = count_real(loaders[dataloader_idx], batch_idx, len(y))
        if real:
            seed = batch_idx * trainer.world_size + trainer.global_rank
            self._gauges[dataloader_idx].update(trainer, pl_module, x[:real], y[:real], seed)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        gauges, self._gauges = self._gauges, []
        if trainer.sanity_checking:
            return
        names = loader_names(trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders)
        if gauges:
            self._latest = []
        for index, gauge in enumerate(gauges):
            name = names[index]
            end = f"/{name}" if name is not None else _NUMBERED.format(index) if len(names) > 1 else ""
            summaries = gauge.summaries()
            if not summaries[""].samples:
                rank_zero_warn(f"{type(self).__name__} has seen no sample: the dataloader {split}{end} is empty")
                continue
            self._warn(summaries, f"{split}{end}")
            row: dict[str, Any] = {
                "stage": str(getattr(trainer.state.fn, "value", "")),
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "end": end,
                "samples": int(summaries[""].samples),
            }
            for ending, summary in summaries.items():
                row |= {f"{key}{ending}": value for key, value in _plain(summary).items()}
            if row["stage"] == "fit" and "acc_adv" in row:
                earlier = [one for one in self.history if one["stage"] == "fit" and one["end"] == end]
                row["robust_gap"] = max(one["acc_adv"] for one in [*earlier, row]) - row["acc_adv"]
            self.history.append(row)
            self._latest.append(row)
            shown = ("ece", "nll", "brier", "ece_adv", "nll_adv", "brier_adv", "robust_gap")
            for key in shown:
                if key in row:
                    pl_module.log(
                        f"{split}/{key}{self._logged_as}{end}",
                        row[key],
                        on_step=False,
                        on_epoch=True,
                        add_dataloader_idx=False,  # the name has it
                        sync_dist=True,
                        reduce_fx="max",  # all ranks have the same value, and the maximum is exact
                    )

    def _warn(self, summaries: dict[str, CalibrationSummary], where: str) -> None:
        for ending, summary in summaries.items():
            if summary.undefined and not self._has_warned:
                self._has_warned = True
                rank_zero_warn(
                    f"{where}: the module's logits are NaN or infinite for {int(summary.undefined)} of "
                    f"{int(summary.samples)} {'adversarial' if ending else 'clean'} inputs, so that ece{ending}, "
                    f"nll{ending} and brier{ending} are NaN"
                )

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Print and draw the last check of this stage."""
        directory = trainer.log_dir  # every rank asks: Lightning broadcasts it
        is_rehearsal = bool(getattr(trainer, "fast_dev_run", False))
        if not trainer.loggers or is_rehearsal:
            directory = None  # a run that logs nowhere leaves no file either
        stage = str(getattr(trainer.state.fn, "value", ""))
        last, self._latest = self._latest, []
        if not last:
            if stage == "fit" and not is_rehearsal and all(row["stage"] != "fit" for row in self.history):
                rank_zero_warn(
                    f"{type(self).__name__}(every_n_epochs={self.every_n_epochs}) has made no check: the run ended "
                    "before the first one was due, or has no validation"
                )
            return
        if not trainer.is_global_zero:
            return
        # Elsewhere the trainer's epoch is not that of the weights, which may be a checkpoint's.
        title = f"{split}, epoch {last[0]['epoch']}" if stage == "fit" else split
        pl_module.print(summarize(last, f"calibration{self._logged_as}, {title}"))
        for row in last if trainer.loggers else []:
            figure = draw_reliability(row, f"{title}{row['end'].replace('/', ', ')}: {row['samples']} samples")
            path = publish_figure(trainer, f"{split}/reliability{self._logged_as}{row['end']}", figure, directory)
            if path is not None:
                pl_module.print(f"Reliability diagram: {path}")


def _own_suffix(callback: CalibrationLogger, trainer: Trainer) -> str:
    """The callback's suffix; of the second one of it with ``_2`` behind."""
    others: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # the Trainer's connectors set it
    same = [one for one in others if isinstance(one, CalibrationLogger) and one.suffix == callback.suffix]
    number = same.index(callback) + 1
    suffix = callback.suffix if number == 1 else f"{callback.suffix}_{number}"
    if number > 1 and any(isinstance(one, CalibrationLogger) and one.suffix == suffix for one in others):
        raise MisconfigurationException(
            f"two CalibrationLoggers would log with {suffix!r} behind their names, one as number {number} of `suffix`="
            f"{callback.suffix!r}: give it another `suffix`"
        )
    return suffix


def _plain(summary: CalibrationSummary) -> dict[str, Any]:
    """Write it as numbers and lists, as a checkpoint can hold them."""
    bins = summary.reliability._asdict()
    return {
        "acc": float(summary.accuracy),
        "ece": float(summary.ece),
        "nll": float(summary.nll),
        "brier": float(summary.brier),
        "bins": {name: values.tolist() for name, values in bins.items()},
    }

"""What every callback has in common that looks at a fixed probe set again and again during training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from pl_robust._figure import publish_figure
from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust._number import check_count
from pl_robust._probe_set import ProbeSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ProbeObserver(Callback, ABC):
    """Base class of the observers: measures on a probe set after every n epochs or steps, logs, and draws at the end.

    A subclass says what to measure (``_measure``), what to look at before the first epoch (``_inspect``), what to show
    at the end (``_draw``, ``_summarize``), and gives a ``state_key`` of its own. What it measures goes to the history,
    to ``trainer.callback_metrics``, where ModelCheckpoint and EarlyStopping find it, and to the loggers, as
    ``<prefix>/<name>``. If the module is to stay as it is, measuring takes place inside ``probe``; every rank does it.

    Args:
        every_n_epochs: check at the end of every n-th training epoch.
        every_n_steps: check after every n-th optimizer step instead.
        max_samples: size of the probe set, see ``ProbeSet``.
        probe_data: (x, y) to look at instead of validation data.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.
        prefix: first part of the logged names; the second observer of the same prefix logs under ``<prefix>_2``.

    Attributes:
        history: one row for each check: epoch, step, and what was measured.

    Raises:
        ValueError: at construction, for a value that is not allowed.
        TypeError: at construction, for an argument of another type.
        MisconfigurationException: at the start of fit, if the strategy splits parameters, or there is no validation
            data.
    """

    _on_bar: ClassVar[tuple[str, ...]] = ()
    """Names of the values that the progress bar shows."""
    _unlogged: ClassVar[tuple[str, ...]] = ()
    """Names of the values that stay in the history."""
    _looks_before: ClassVar[bool] = False
    """Whether a run that starts from scratch has a check before its first step too: epoch -1, step 0."""

    def __init__(
        self,
        *,
        every_n_epochs: int,
        every_n_steps: int | None,
        max_samples: int,
        probe_data: tuple[Tensor, Tensor] | None,
        input_key: str | int,
        label_key: str | int,
        prefix: str,
    ) -> None:
        super().__init__()
        counts = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "max_samples": max_samples}
        for name, count in counts.items():
            if count is not None:
                check_count(count, name)
        if not isinstance(prefix, str):
            raise TypeError(f"`prefix` must be a name, got {prefix!r}")
        if not prefix:
            raise ValueError("`prefix` must be a name of at least one letter, got ''")
        if probe_data is not None:
            is_pair = isinstance(probe_data, list | tuple) and len(probe_data) == 2
            if not is_pair or not all(isinstance(part, Tensor) and part.dim() > 0 for part in probe_data):
                kinds = [type(part).__name__ for part in probe_data] if is_pair else type(probe_data).__name__
                raise TypeError(f"`probe_data` must be two tensors (x, y) with a dimension of samples, got {kinds}")
        if probe_data is not None and not 0 < len(probe_data[0]) == len(probe_data[1]):
            lengths = [len(part) for part in probe_data]
            raise ValueError(f"`probe_data` must be (x, y) of one length, at least 1, got lengths {lengths}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.max_samples = max_samples
        self.probe_data = probe_data
        self.input_key = input_key
        self.label_key = label_key
        self.prefix = prefix
        self.history: list[dict[str, float]] = []
        self._logged_as = prefix
        self._probe_set = ProbeSet(max_samples, input_key, label_key, probe_data)

    @abstractmethod
    def _inspect(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at this rank's samples once, so that what is wrong with them is said before an epoch has been spent."""

    @abstractmethod
    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Measure on the probe set: name -> value, the same on every rank. A collective call."""

    @abstractmethod
    def _draw(self) -> Figure:
        """Draw the history. Called on rank zero, at the end of fit."""

    @abstractmethod
    def _summarize(self) -> str:
        """Put the history into words. Called on rank zero, at the end of fit."""

    def _forget(self) -> None:
        """Forget an earlier run."""
        self.history = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the strategy can be watched, and find the prefix."""
        if stage != "fit":
            return
        refuse_split_parameters(self, trainer)
        self._logged_as = own_prefix(self, self.prefix, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run, and read the probe set."""
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            self._forget()
        for other in trainer.callbacks:  # type: ignore[attr-defined]  # the Trainer's connectors set it
            monitor = getattr(other, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith(f"{self._logged_as}/") and _looks_early(other, trainer):
                rank_zero_warn(
                    f"{type(other).__name__}(monitor={monitor!r}) looks after validation, when this epoch's value "
                    "is not there yet: give it save_on_train_epoch_end=True (EarlyStopping: check_on_train_epoch_end)"
                )
        self._probe_set.read(trainer, pl_module)
        self._inspect(trainer, pl_module)
        if self._looks_before and self._probe_set.chunks and not self.history and trainer.global_step == 0:
            self._record(trainer, self._measure(trainer, pl_module), epoch=-1)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let the probe set keep the batch, if it needs to."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._probe_set.keep(trainer, batch, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the probe set end its collection."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._probe_set.close(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check, if it is time by steps."""
        step = trainer.global_step
        if self.every_n_steps is None or step == 0 or step % self.every_n_steps:
            return
        has_checked = bool(self.history) and self.history[-1]["step"] == step  # a step may span several batches
        if self._probe_set.chunks and not has_checked:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if it is time by epochs."""
        is_time = self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if self._probe_set.chunks and is_time:
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, publish the figure."""
        directory = trainer.log_dir  # every rank asks: Lightning broadcasts it
        if not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            directory = None  # a run that logs nowhere leaves no file either
        if not self.history:
            rank_zero_warn(
                f"{type(self).__name__} has made no check: the run ended before the first one was due, or, with "
                "iterable validation data, before the first validation"
            )
        if not trainer.is_global_zero or not self.history:
            return
        path = publish_figure(trainer, f"{self._logged_as}/curves", self._draw(), directory)
        pl_module.print(self._summarize())
        if path is not None:
            pl_module.print(f"Curves: {path}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.history = [dict(row) for row in state_dict["history"]]

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, remember and log."""
        measured = self._measure(trainer, pl_module)
        self._record(trainer, measured, epoch=trainer.current_epoch)
        by_step = self.every_n_steps is not None
        for name, value in measured.items():
            if name not in self._unlogged:
                pl_module.log(
                    f"{self._logged_as}/{name}",
                    value,
                    prog_bar=name in self._on_bar,
                    logger=False,
                    sync_dist=True,
                    on_step=by_step,
                    on_epoch=not by_step,
                )

    def _record(self, trainer: Trainer, measured: dict[str, float], *, epoch: int) -> None:
        """Put a check into the history and into the loggers."""
        self.history.append({"epoch": epoch, "step": trainer.global_step, **measured})
        # Straight to the loggers: a check between two logging steps must not be lost.
        metrics = {f"{self._logged_as}/{name}": value for name, value in measured.items() if name not in self._unlogged}
        for logger in trainer.loggers:
            # Lightning counts steps from 0 in what it logs.
            logger.log_metrics({**metrics, "epoch": epoch}, step=max(0, trainer.global_step - 1))


def refuse_split_parameters(callback: Callback, trainer: Trainer) -> None:
    """Refuse strategies under which no rank has the whole network to look at.

    Raises:
        MisconfigurationException: for FSDP, DeepSpeed and tensor parallelism.
    """
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel")):
        raise MisconfigurationException(
            f"{type(callback).__name__} needs whole parameters on every rank, {strategy} splits them: use 'ddp'"
        )


def own_prefix(callback: Callback, prefix: str, trainer: Trainer) -> str:
    """Give the first part of a callback's logged names: ``prefix``, or for the second one of it ``<prefix>_2``."""
    # getattr instead of isinstance: the list may hold callbacks of any origin.
    same = [other for other in trainer.callbacks if getattr(other, "prefix", None) == prefix]  # type: ignore[attr-defined]
    number = same.index(callback) + 1
    return prefix if number == 1 else f"{prefix}_{number}"


def time_axis(history: Sequence[Mapping[str, float]]) -> str:
    """Name what a figure shows the history against: the epoch, or the step where an epoch has several checks."""
    return "epoch" if len({row["epoch"] for row in history}) == len(history) else "step"


def _looks_early(other: Any, trainer: Trainer) -> bool:
    """Tell whether a ModelCheckpoint or EarlyStopping looks at the end of validation, not of the training epoch."""
    if hasattr(other, "_should_save_on_train_epoch_end"):
        by_step = getattr(other, "_every_n_train_steps", 0) > 0
        return not by_step and not other._should_save_on_train_epoch_end(trainer)
    return not getattr(other, "_check_on_train_epoch_end", True)

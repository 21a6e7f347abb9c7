"""Watch a network learn a signal: the reconstruction, its error, both spectra and the PSNR, while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust._number import check_count
from pl_robust._signal import Signal
from pl_robust.callbacks._inr_figure import Fit
from pl_robust.callbacks._inr_reconstruction import check_values, reconstruct
from pl_robust.callbacks._inr_record import FitRecord
from pl_robust.callbacks._observer import own_prefix, refuse_split_parameters


class INRVisualizer(Callback):
    """Show what an implicit neural representation makes of its signal, as a figure and as its PSNR.

    Drop it into any Trainer whose module's ``forward`` maps coordinates [N, d] to values [N, c], or [S, N, c] for S
    signals: ``INRFitting`` is one. Before the first step, after every n steps or epochs and after the last step, it
    asks the network, in eval mode, outside the Trainer's autocast, for the values at all points of the signal's grid,
    whether they are trained on or not, and logs

    * ``inr/psnr``: the PSNR of the whole signal in dB, mean over signals;
    * ``inr/fit``: a figure, to each logger that takes one. A picture beside its reconstruction, the absolute error,
      both amplitude spectra, the PSNR so far; curves for a signal with one grid axis, the middle slices of a volume.

    What it finds after every n steps or epochs is also in ``trainer.callback_metrics``, for ModelCheckpoint and
    EarlyStopping (see ``CatastrophicOverfittingDetector`` for those that look once an epoch); before the first step,
    and after a last one at which no check was due, Lightning takes no value.

    The last figure is saved as ``inr_fit.png`` in the run's folder, if there is a logger; on request each one as
    ``inr_fit_<step>.png``, and the reconstructions as a film ``inr_fit.gif``. A run that is broken off, also by an
    error, leaves its files, too. With ``fast_dev_run`` no file is written.

    It only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as without it. All ranks
    share the work and log the same number. The history survives a resume; the frames of the film, which may be larger
    than the network, are not in the checkpoint: a film begins where its process did. Several can live in one Trainer,
    if their cadence, ``prefix``, ``signal_index`` or the shape of their ``signal`` differs (the second of the same
    ``prefix`` logs under ``inr_2/``).

    A check costs one forward pass over all points and, if the figure is drawn (for a logger that takes it, or
    ``png``), about half a second on the first rank.

    Args:
        every_n_steps: check after every n-th optimizer step.
        every_n_epochs: check at the end of every n-th training epoch instead.
        signal: what to compare with; None: the datamodule's attribute ``signal``, which ``SignalDataModule`` has.
        signal_index: which of S signals the figure and the film show.
        png: save the figure of each check, not of the last one only.
        gif: save the film of the reconstructions, at most 64 frames, evenly spaced, of at most 512 pixels a side.
        save_dir: folder of the files instead of the run's; None: the run's, without a logger the Trainer's
            ``default_root_dir``.
        chunk_size: network evaluations at once, S of them at each point.
        prefix: first part of the logged names and of the files'.

    Attributes:
        history: one row for each check: epoch, step, psnr. The one before the first step has epoch -1.

    Raises:
        ValueError: at construction, for a count less than 1 or a negative ``signal_index``; at the start of fit, if
            there is no signal of that index, or the network's values are not like the signal's.
        TypeError: at construction, for an argument of another type.
        MisconfigurationException: at the start of fit, if there is no signal, or the strategy splits parameters.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        *,
        every_n_epochs: int | None = None,
        signal: Signal | None = None,
        signal_index: int = 0,
        png: bool = False,
        gif: bool = False,
        save_dir: str | Path | None = None,
        chunk_size: int = 65_536,
        prefix: str = "inr",
    ) -> None:
        super().__init__()
        check_count(every_n_steps, "every_n_steps")
        check_count(chunk_size, "chunk_size")
        if every_n_epochs is not None:
            check_count(every_n_epochs, "every_n_epochs")
        if signal is not None and not isinstance(signal, Signal):
            raise TypeError(f"`signal` must be a Signal or None, got {type(signal).__name__}")
        if isinstance(signal_index, bool) or not isinstance(signal_index, int):
            raise TypeError(f"`signal_index` must be an integer, got {signal_index!r}")
        if signal_index < 0:
            raise ValueError(f"`signal_index` must be at least 0, got {signal_index}")
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.signal = signal
        self.signal_index = signal_index
        self.chunk_size = chunk_size
        self.prefix = prefix
        self.history: list[dict[str, float]] = []
        self._logged_as = prefix
        self._record = FitRecord(png, gif, save_dir)

    @property
    def state_key(self) -> str:
        """Tell visualizers apart by when they look, what they show and how they log it."""
        return self._generate_state_key(
            every_n_steps=self.every_n_steps,
            every_n_epochs=self.every_n_epochs,
            signal=None if self.signal is None else list(self.signal.values.shape),
            signal_index=self.signal_index,
            prefix=self.prefix,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the strategy can be watched and there is a signal, and find the prefix."""
        if stage != "fit":
            return
        refuse_split_parameters(self, trainer)
        self._logged_as = own_prefix(self, self.prefix, trainer)
        signals = self._find_signal(trainer).num_signals
        if self.signal_index >= signals:
            raise ValueError(
                f"`signal_index` must be less than the number of signals, {signals}, got {self.signal_index}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run, see that the network fits the signal, and look at it if it has had no step."""
        is_new = trainer.global_step == 0 and trainer.current_epoch == 0
        if is_new:
            self.history = []
        self._record.begin(trainer, self._logged_as, -1 if is_new else trainer.global_step)
        check_values(pl_module, self._find_signal(trainer))
        if is_new:
            self._look(trainer, pl_module, epoch=-1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check, if it is time by steps."""
        if self.every_n_epochs is not None or trainer.global_step % self.every_n_steps:
            return
        if not self._has_checked(trainer):  # a step may span several batches
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if it is time by epochs."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the trained network, save the last figure and the film, print the summary."""
        if not self._has_checked(trainer):
            self._look(trainer, pl_module, epoch=max(0, trainer.current_epoch - 1))  # it has been counted on
        if trainer.is_global_zero:
            pl_module.print("\n".join([self._summarize(), *map(str, self._record.save(self.history))]))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what there is to see of a training that is broken off."""
        try:
            self._record.save(self.history)
        except OSError as error:  # must not hide what has gone wrong before
            rank_zero_warn(f"{type(self).__name__} could not save its files: {error}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened, but the film."""
        return {"history": [dict(row) for row in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.history = [dict(row) for row in state_dict["history"]]

    def _find_signal(self, trainer: Trainer) -> Signal:
        if self.signal is not None:
            return self.signal
        datamodule = getattr(trainer, "datamodule", None)
        signal = getattr(datamodule, "signal", None)
        if not isinstance(signal, Signal):
            got = "there is no datamodule" if datamodule is None else f"{type(datamodule).__name__} has none"
            raise MisconfigurationException(
                f"{type(self).__name__} takes the signal from the datamodule's attribute `signal`, and {got}: train "
                "with trainer.fit(module, datamodule=SignalDataModule(...)), or give it `signal`"
            )
        return signal

    def _has_checked(self, trainer: Trainer) -> bool:
        return bool(self.history) and self.history[-1]["step"] == trainer.global_step

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and log where callbacks find it."""
        by_step = self.every_n_epochs is None
        pl_module.log(
            f"{self._logged_as}/psnr",
            self._look(trainer, pl_module, epoch=trainer.current_epoch),
            prog_bar=True,
            logger=False,
            sync_dist=True,
            reduce_fx="max",  # all ranks have the same value, and the maximum is exact
            on_step=by_step,
            on_epoch=not by_step,
            batch_size=1,
        )

    def _look(self, trainer: Trainer, pl_module: LightningModule, *, epoch: int) -> float:
        """Measure, remember, give to the loggers. A collective call."""
        signal = self._find_signal(trainer)
        reconstruction = reconstruct(trainer, pl_module, signal, self.chunk_size)
        target = signal.samples.reshape(reconstruction.shape).to(reconstruction.device)
        psnrs = peak_signal_noise_ratio(
            reconstruction, target, data_range=signal.data_range, dim=(-2, -1), reduction="none"
        )
        psnr = float(psnrs.mean())
        self.history.append({"epoch": epoch, "step": trainer.global_step, "psnr": psnr})
        # Straight to the loggers: a check between two logging steps must not be lost.
        for logger in trainer.loggers:
            # Lightning counts steps from 0 in what it logs.
            metrics = {f"{self._logged_as}/psnr": psnr, "epoch": max(0, epoch)}
            logger.log_metrics(metrics, step=max(0, trainer.global_step - 1))
        if trainer.is_global_zero:
            shape = (*signal.shape, signal.channels)
            fit = Fit(
                target[self.signal_index].reshape(shape).cpu(),
                reconstruction[self.signal_index].reshape(shape).cpu(),
                signal.coordinate_range,
                float(psnrs[self.signal_index]),
                trainer.global_step,
            )
            self._record.show(trainer, fit, self.history)
        return psnr

    def _summarize(self) -> str:
        lines = [f"{self._logged_as + ' check':<28}{'psnr':>10}"]
        best = max(self.history, key=lambda row: row["psnr"] if row["psnr"] == row["psnr"] else -torch.inf)
        for label, row in (("first", self.history[0]), ("best", best), ("last", self.history[-1])):
            where = f"{label}, step {row['step']:.0f}"
            lines.append(f"{where:<28}{row['psnr']:>7.2f} dB")
        return "\n".join(lines)

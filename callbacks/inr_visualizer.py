"""Watch a network learn a signal: the reconstruction, its error, both spectra and the PSNR, while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from pl_robust._figure import publish_figure
from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust._number import check_count
from pl_robust._probe import probe
from pl_robust._signal import Signal
from pl_robust.callbacks._filmstrip import Filmstrip
from pl_robust.callbacks._inr_figure import Fit, draw_fit, draw_frame
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
    than the network, are not in the checkpoint: a film begins where its process did. Several can live in one Trainer
    (the second of the same ``prefix`` logs under ``inr_2/``).

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

    _shown: Fit | None = None  # of the last check of the fit under way; on rank zero only
    _directory: str | None = None  # of the files; None for a run that leaves none

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
        self.png = png
        self.gif = gif
        self.save_dir = save_dir
        self.chunk_size = chunk_size
        self.prefix = prefix
        self.history: list[dict[str, float]] = []
        self._logged_as = prefix
        self._film = Filmstrip()

    @property
    def state_key(self) -> str:
        """Tell visualizers apart by when they look, what they show and how they log it."""
        return self._generate_state_key(
            every_n_steps=self.every_n_steps,
            every_n_epochs=self.every_n_epochs,
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
        self._film.cut_after(-1 if is_new else trainer.global_step)
        self._shown = None
        self._directory = self._find_directory(trainer)
        signal = self._find_signal(trainer)
        with (
            probe(pl_module),
            torch.no_grad(),
        ):  # on every rank: one that had to refuse alone would leave others waiting
            _ask(pl_module, signal.coordinates[:2], signal)
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
            pl_module.print("\n".join([self._summarize(), *map(str, self._save())]))
        self._shown = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what there is to see of a training that is broken off."""
        try:
            self._save()
        except OSError as error:  # must not hide what has gone wrong before
            rank_zero_warn(f"{type(self).__name__} could not save its files: {error}")
        self._shown = None

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

    def _find_directory(self, trainer: Trainer) -> str | None:
        log_dir = trainer.log_dir  # every rank asks: Lightning broadcasts it
        is_asked = self.png or self.gif or self.save_dir is not None
        if getattr(trainer, "fast_dev_run", False) or not (trainer.loggers or is_asked):
            return None  # a run that logs nowhere leaves no file either
        return str(self.save_dir or log_dir or trainer.default_root_dir)

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
        reconstruction = self._reconstruct(trainer, pl_module, signal)
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
            self._shown = Fit(
                target[self.signal_index].reshape(shape).cpu(),
                reconstruction[self.signal_index].reshape(shape).cpu(),
                signal.coordinate_range,
                float(psnrs[self.signal_index]),
                trainer.global_step,
            )
            self._show(trainer, self._shown)
        return psnr

    def _reconstruct(self, trainer: Trainer, pl_module: LightningModule, signal: Signal) -> Tensor:
        """Ask for all values: float32 [S, N, c] on the module's device, the same on every rank."""
        coordinates = signal.coordinates
        values = torch.zeros(signal.num_signals, len(coordinates), signal.channels, device=pl_module.device)
        size = max(1, self.chunk_size // signal.num_signals)
        with probe(pl_module), torch.no_grad():
            for index, start in enumerate(range(0, len(coordinates), size)):
                if index % trainer.world_size == trainer.global_rank:
                    values[:, start : start + size] = _ask(pl_module, coordinates[start : start + size], signal)
            # Each rank has filled in its own chunks: adding zeros to them is exact.
            reduced: Tensor = trainer.strategy.reduce(values, reduce_op="sum")
        return reduced

    def _show(self, trainer: Trainer, fit: Fit) -> None:
        if self.gif and self._directory is not None:
            self._film.add(fit.step, draw_frame(fit))
        is_saved = self.png and self._directory is not None
        if not is_saved and not any(_takes_figures(logger) for logger in trainer.loggers):
            return
        figure = draw_fit(fit, self.history, self._logged_as)
        publish_figure(trainer, f"{self._logged_as}/fit", figure, None)
        if is_saved:
            figure.savefig(self._path(f"_{fit.step:06d}.png"), dpi=120)

    def _save(self) -> list[Path]:
        """Write the last figure and the film; on rank zero, where there is one."""
        if self._shown is None or self._directory is None:
            return []
        saved = [self._path(".png")]
        draw_fit(self._shown, self.history, self._logged_as).savefig(saved[0], dpi=120)
        if self.gif:
            saved.append(self._path(".gif"))
            self._film.write(saved[1])
        return saved

    def _path(self, ending: str) -> Path:
        directory = Path(self._directory or ".")
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{self._logged_as.replace('/', '_')}_fit{ending}"

    def _summarize(self) -> str:
        lines = [f"{self._logged_as + ' check':<28}{'psnr':>10}"]
        best = max(self.history, key=lambda row: row["psnr"] if row["psnr"] == row["psnr"] else -torch.inf)
        for label, row in (("first", self.history[0]), ("best", best), ("last", self.history[-1])):
            where = f"{label}, step {row['step']:.0f}"
            lines.append(f"{where:<28}{row['psnr']:>7.2f} dB")
        return "\n".join(lines)


def _ask(module: LightningModule, coordinates: Tensor, signal: Signal) -> Tensor:
    """Ask a network in its own precision for the values at some points: float32 [S, n, c].

    Raises:
        ValueError: if they are not like the signal's.
    """
    like = next((part for part in (*module.parameters(), *module.buffers()) if part.is_floating_point()), coordinates)
    values = module(coordinates.to(module.device, like.dtype))
    shape = [signal.num_signals, len(coordinates), signal.channels]
    got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if got != shape and [1, *(got if isinstance(got, list) else [])] != shape:
        stack = f"{shape[0]}, " if shape[0] > 1 else ""
        raise ValueError(
            f"{type(module).__name__} must map coordinates [N, {coordinates.shape[1]}] to the signal's values "
            f"[{stack}N, {shape[2]}], for N = {shape[1]} it gave {got}: set the network's `out_features` to "
            f"{shape[2]} and the module's number of signals to {shape[0]}"
        )
    reshaped: Tensor = values.reshape(shape).float()
    return reshaped


def _takes_figures(logger: Any) -> bool:
    """Tell whether ``publish_figure`` finds a place in a logger; drawing for none would be waste."""
    return hasattr(getattr(logger, "experiment", None), "add_figure") or hasattr(logger, "log_image")

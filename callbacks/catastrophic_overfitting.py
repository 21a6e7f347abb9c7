"""Catch catastrophic overfitting while it happens."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from pl_robust._figure import publish_figure
from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust._number import check_count
from pl_robust._probe_set import ProbeSet
from pl_robust.attacks import PGD, Attack
from pl_robust.attacks._target import Normalization, check_choices
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius
from pl_robust.callbacks._co_measure import Gauge
from pl_robust.callbacks._co_report import draw_curves, summarize
from pl_robust.callbacks._collapse import has_collapsed
from pl_robust.callbacks._snapshot import Snapshot, restore_snapshot, take_snapshot

Action = Literal["warn", "stop", "rollback"]

_HEALTHY = 0.9
"""Share of the best PGD accuracy that a check must show for its weights to be worth going back to."""


class CatastrophicOverfittingDetector(Callback):
    """Watch a training for catastrophic overfitting (CO; Wong et al. 2020), and act on it.

    Drop it into any Trainer whose module's ``forward(x)`` gives logits [B, K] and whose batches hold (x, y). On a fixed
    probe set, in eval mode, it measures after every n epochs or steps and logs:

    * ``co/acc``: accuracy on clean inputs;
    * ``co/acc_fgsm``: accuracy under the single-step attack;
    * ``co/acc_pgd``: accuracy under a short PGD;
    * ``co/gap``: their difference;
    * ``co/grad_align``: mean cosine of the input gradients at x and at a random point of its eps-ball
      (Andriushchenko & Flammarion 2020, eq. 4), which falls to 0 at CO;
    * ``co/detected``: 1 from the check that finds CO until PGD accuracy is back at 90 % of its best before, else 0.

    What counts as CO is said at ``has_collapsed``: PGD accuracy has fallen to half of its own best while single-step
    accuracy stays high. A network that was never robust is not CO, nor is a dip that a small probe set explains. At
    the end of fit it prints a table and draws the curves, to the loggers and as PNG into the run's folder.

    It logs at the end of the training epoch, after validation. Where validation does not come once an epoch, a
    ``ModelCheckpoint`` that monitors one of its values needs ``save_on_train_epoch_end=True``, an ``EarlyStopping``
    ``check_on_train_epoch_end=True``; and the first check must come in the first epoch, or they find no value.

    With ``action="warn"`` it only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as
    without it. (Out of its reach is what is neither a buffer nor a generator: a data set that changes in other ways
    when it is read, a Python counter in ``forward``.) All ranks share the work and decide alike; state survives a
    resume; several detectors can live in one Trainer (the second of the same ``prefix`` logs under ``co_2/``; those
    that differ in ``action`` or ``probe_data`` only need a ``prefix`` of their own).

    Args:
        eps: radius of the ball in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per
            channel.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, or None for data that may leave [0, 1].
        normalization: (mean, std) per channel of data that is normalized before it reaches the module.
        attack: the single-step attack; None means FGSM at eps. Give the training attack if it is another one.
        strong_attack: the attack that must not succeed much better; None means PGD with 10 steps of eps / 4.
            Coarser steps overestimate the robustness of a network after CO.
        every_n_epochs: check at the end of every n-th training epoch.
        every_n_steps: check after every n-th optimizer step instead.
        max_samples: size of the probe set: the first samples of the first validation dataloader, in the order of its
            sampler. Iterable data is not read ahead: its samples are those of the first validation, and checks begin
            after it.
        probe_data: (x, y) to look at instead: inputs [N, ...] as the module takes them, and labels [N].
        action: what to do at CO: ``"warn"``; ``"stop"`` the training; or ``"rollback"``: put weights, optimizers and
            schedules back to the last healthy check, at 90 % of the best PGD accuracy or more, and then stop, or go on
            with ``fallback_attack``. The checkpoints then hold that state too, which doubles them.
        fallback_attack: the stronger attack to go on with after a rollback; the module must hold its training attack as
            ``attack``, as ``AdversarialTraining`` does. At a second CO the training is rolled back and stopped.
        max_kept: largest share of the best PGD accuracy that counts as collapsed.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.
        prefix: first part of the logged names.

    Raises:
        ValueError: at construction, for a value that is not allowed.
        MisconfigurationException: at the start of fit, if module or strategy cannot be watched; at the first check, if
            there is no validation data.
    """

    def __init__(
        self,
        eps: Radius,
        *,
        norm: Norm = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        normalization: Normalization | None = None,
        attack: Attack | None = None,
        strong_attack: Attack | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        max_samples: int = 256,
        probe_data: tuple[Tensor, Tensor] | None = None,
        action: Action = "warn",
        fallback_attack: Attack | None = None,
        max_kept: float = 0.5,
        input_key: str | int = 0,
        label_key: str | int = 1,
        prefix: str = "co",
    ) -> None:
        super().__init__()
        self.ball = ThreatModel(parse_radius(eps, "eps"), norm, bounds)
        check_choices(normalization, "train")
        counts = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "max_samples": max_samples}
        for name, count in counts.items():
            if count is not None:
                check_count(count, name)
        attacks = {"attack": attack, "strong_attack": strong_attack, "fallback_attack": fallback_attack}
        for name, given in attacks.items():
            if given is not None and not isinstance(given, Attack):
                raise TypeError(f"`{name}` must be an attack such as PGD(eps=8/255), got {given!r}")
        if probe_data is not None and not 0 < len(probe_data[0]) == len(probe_data[1]):
            lengths = [len(part) for part in probe_data]
            raise ValueError(f"`probe_data` must be (x, y) of one length, at least 1, got lengths {lengths}")
        if action not in get_args(Action):
            raise ValueError(f"`action` must be one of {get_args(Action)}, got {action!r}")
        if fallback_attack is not None and action != "rollback":
            raise ValueError(f"`fallback_attack` is used after a rollback: set action='rollback', got {action!r}")
        if not 0 < max_kept < 1:
            raise ValueError(f"`max_kept` must lie between 0 and 1, a share of the best PGD accuracy, got {max_kept!r}")
        self.normalization = normalization
        self.attack = attack
        if strong_attack is None:
            strong_attack = PGD(eps, norm=norm, bounds=bounds, normalization=normalization)
        self.strong_attack = strong_attack.for_evaluation()
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.max_samples = max_samples
        self.probe_data = probe_data
        self.action = action
        self.fallback_attack = fallback_attack
        self.max_kept = max_kept
        self.input_key = input_key
        self.label_key = label_key
        self.prefix = prefix
        self.history: list[dict[str, float]] = []
        self._logged_as = prefix
        self._collapsed = False
        self._on_fallback = False
        self._snapshot: Snapshot | None = None
        self._probe_set = ProbeSet(max_samples, input_key, label_key, probe_data)
        self._gauge = Gauge(self.ball, normalization, attack, self.strong_attack)

    @property
    def state_key(self) -> str:
        """Tell detectors apart by what they measure and how they log it."""
        eps = self.ball.eps.tolist() if isinstance(self.ball.eps, Tensor) else self.ball.eps
        return self._generate_state_key(
            eps=eps,
            norm=self.ball.norm,
            attack=repr(self.attack),
            strong_attack=repr(self.strong_attack),
            every_n_epochs=self.every_n_epochs,
            every_n_steps=self.every_n_steps,
            max_samples=self.max_samples,
            max_kept=self.max_kept,
            bounds=self.ball.bounds,
            normalization=repr(self.normalization),
            keys=[self._probe_set.keys[0], self._probe_set.keys[1]],
            prefix=self.prefix,
        )

    @property
    def best_pgd(self) -> float:
        """Highest accuracy under PGD at any check without CO so far, 0 before the first."""
        return max((row["acc_pgd"] for row in self.history if not row["detected"]), default=0.0)

    @property
    def detections(self) -> list[dict[str, float]]:
        """The checks at which CO set in: rows of the history."""
        return [row for row in self.history if row["onset"]]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that module and strategy can be watched, and find the prefix."""
        if stage != "fit":
            return
        strategy = type(trainer.strategy).__name__
        if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel")):
            raise MisconfigurationException(
                f"{type(self).__name__} needs whole parameters on every rank, {strategy} splits them: use 'ddp'"
            )
        if self.fallback_attack is not None and not isinstance(getattr(pl_module, "attack", None), Attack):
            raise MisconfigurationException(
                f"`fallback_attack` replaces the module's attribute `attack`, and {type(pl_module).__name__} has no "
                "attack there: use AdversarialTraining, or leave `fallback_attack` out to stop after the rollback"
            )
        # hasattr instead of isinstance: the list may hold callbacks of any origin.
        same = [other for other in trainer.callbacks if getattr(other, "prefix", None) == self.prefix]  # type: ignore[attr-defined]
        number = same.index(self) + 1
        self._logged_as = self.prefix if number == 1 else f"{self.prefix}_{number}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run; or take up the fallback attack where a resumed run had it."""
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            # Another network's best accuracy would make this one's early checks look like a collapse.
            self.history, self._snapshot, self._on_fallback, self._collapsed = [], None, False, False
        if self._on_fallback and self.fallback_attack is None:
            raise MisconfigurationException(
                "the checkpoint comes from a run that went on with its `fallback_attack`, and this detector has none: "
                "give it the same `fallback_attack`"
            )
        if self._on_fallback:
            _set_attack(pl_module, self.fallback_attack)
        for other in trainer.callbacks:  # type: ignore[attr-defined]  # the Trainer's connectors set it
            monitor = getattr(other, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith(f"{self._logged_as}/") and _looks_early(other, trainer):
                rank_zero_warn(
                    f"{type(other).__name__}(monitor={monitor!r}) looks after validation, when this epoch's value "
                    "is not there yet: give it save_on_train_epoch_end=True (EarlyStopping: check_on_train_epoch_end)"
                )
        self._probe_set.read(trainer, pl_module)
        # What is wrong with the data shall be said before an epoch has been spent.
        self._gauge.inspect(trainer, pl_module, self._probe_set.mine)

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
        if not self.history or self.history[-1]["step"] != step:  # under accumulation a step spans several batches
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if it is time by epochs."""
        if self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, publish the figure."""
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
        figure = draw_curves(self.history, self.detections, self._logged_as)
        path = publish_figure(trainer, f"{self._logged_as}/curves", figure, directory)
        pl_module.print(summarize(self.history, self.detections, self._logged_as))
        if path is not None:
            pl_module.print(f"Curves: {path}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {
            "history": list(self.history),
            "collapsed": self._collapsed,
            "on_fallback": self._on_fallback,
            "snapshot": self._snapshot,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.history = [dict(row) for row in state_dict["history"]]
        self._collapsed = state_dict["collapsed"]
        self._on_fallback = state_dict["on_fallback"]
        self._snapshot = state_dict["snapshot"]

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._probe_set.chunks == 0:
            return
        measured = self._gauge.measure(trainer, pl_module, self._probe_set)
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step, **measured.accuracies}
        best = self.best_pgd
        if self._collapsed:
            # Robustness flickers after a collapse: it is over when what was lost is back.
            detected = row["acc_pgd"] < _HEALTHY * best
        else:
            best = max(best, row["acc_pgd"])
            detected = has_collapsed(
                row["acc_fgsm"],
                row["acc_pgd"],
                best,
                chance=measured.chance,
                samples=measured.samples,
                max_kept=self.max_kept,
            )
        is_new = detected and not self._collapsed
        self._collapsed = detected
        row["detected"], row["onset"] = float(detected), float(is_new)
        self.history.append(row)
        metrics = {
            f"{self._logged_as}/{name}": value for name, value in row.items() if name not in ("epoch", "step", "onset")
        }
        for name, value in metrics.items():
            on_bar = name.endswith(("/acc_pgd", "/detected"))
            by_step = self.every_n_steps is not None
            pl_module.log(
                name, value, prog_bar=on_bar, logger=False, sync_dist=True, on_step=by_step, on_epoch=not by_step
            )
        # Straight to the loggers: a check between two logging steps must not be lost.
        for logger in trainer.loggers:
            # Lightning counts steps from 0 in what it logs.
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=max(0, trainer.global_step - 1))
        if detected:
            self._act(trainer, pl_module, best, is_new)
        elif self.action == "rollback" and row["acc_pgd"] >= _HEALTHY * best:
            self._snapshot = take_snapshot(trainer, pl_module)

    def _act(self, trainer: Trainer, pl_module: LightningModule, best: float, is_new: bool) -> None:
        row = self.history[-1]
        done = ""
        if self.action == "stop":
            trainer.should_stop = True
            done = " Training stops."
        elif self.action == "rollback" and self._snapshot is None:
            trainer.should_stop = True
            done = (
                " No healthy check was made with action='rollback', so there is nothing to go back to; training stops."
            )
        elif self.action == "rollback" and self._snapshot is not None:
            restore_snapshot(trainer, pl_module, self._snapshot)
            self._collapsed = False
            done = " Weights, optimizers and schedules are back at the last healthy check;"
            if self.fallback_attack is None or self._on_fallback:
                trainer.should_stop = True
                done += " training stops."
            else:
                self._on_fallback = True
                _set_attack(pl_module, self.fallback_attack)
                done += f" training goes on with {self.fallback_attack!r}."
        if is_new or done:
            rank_zero_warn(
                f"Catastrophic overfitting at epoch {row['epoch']}, step {row['step']}: accuracy under PGD is "
                f"{row['acc_pgd']:.1%}, it was {best:.1%}; under the single-step attack it is {row['acc_fgsm']:.1%}."
                f"{done}"
            )


def _looks_early(other: Any, trainer: Trainer) -> bool:
    """Tell whether a ModelCheckpoint or EarlyStopping looks at the end of validation, not of the training epoch."""
    if hasattr(other, "_should_save_on_train_epoch_end"):
        by_step = getattr(other, "_every_n_train_steps", 0) > 0
        return not by_step and not other._should_save_on_train_epoch_end(trainer)
    return not getattr(other, "_check_on_train_epoch_end", True)


def _set_attack(module: LightningModule, attack: Attack | None) -> None:
    setattr(module, "attack", attack)  # noqa: B010  # nn.Module's type knows of tensors and modules only

"""Catch catastrophic overfitting while it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor

from pl_robust._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from pl_robust.attacks import PGD, Attack
from pl_robust.attacks._masking import masking_symptom
from pl_robust.attacks._target import Normalization
from pl_robust.attacks._threat_model import Norm, Radius
from pl_robust.callbacks._co_measure import Gauge
from pl_robust.callbacks._co_report import draw_curves, summarize
from pl_robust.callbacks._collapse import has_collapsed
from pl_robust.callbacks._neighborhood import Neighborhood, given_neighborhood, plain_eps, training_neighborhood
from pl_robust.callbacks._observer import ProbeObserver
from pl_robust.callbacks._snapshot import Snapshot, restore_snapshot, take_snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Action = Literal["warn", "stop", "rollback"]

_HEALTHY = 0.9
"""Share of the best PGD accuracy that a check must show for its weights to be worth going back to."""


class CatastrophicOverfittingDetector(ProbeObserver):
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

    A network that masks its gradients (zero, or FGSM stronger than PGD) draws one warning: none of this is to be
    trusted then.

    With ``action="warn"`` it only looks: weights, buffers, gradients, optimizer and random numbers are bit for bit as
    without it. (Out of its reach is what is neither a buffer nor a generator: a data set that changes in other ways
    when it is read, a Python counter in ``forward``.) All ranks share the work and decide alike; state survives a
    resume; several detectors can live in one Trainer (the second of the same ``prefix`` logs under ``co_2/``; those
    that differ in ``action`` or ``probe_data`` only need a ``prefix`` of their own).

    Args:
        eps: radius of the ball in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per
            channel. None means eps, norm, bounds and normalization of the module's training attack, its attribute
            ``attack``, as it is when fit starts.
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
        TypeError: at construction, for an argument of another type.
        MisconfigurationException: at the start of fit, if module or strategy cannot be watched, or there is no
            validation data.
    """

    _on_bar: ClassVar[tuple[str, ...]] = ("acc_pgd", "detected")
    _unlogged: ClassVar[tuple[str, ...]] = ("onset",)
    _gauge: Gauge  # made when fit starts and the training attack is known

    def __init__(
        self,
        eps: Radius | None = None,
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
        super().__init__(
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_samples=max_samples,
            probe_data=probe_data,
            input_key=input_key,
            label_key=label_key,
            prefix=prefix,
        )
        self._given = given_neighborhood(eps, norm, bounds, normalization)
        attacks = {"attack": attack, "strong_attack": strong_attack, "fallback_attack": fallback_attack}
        for name, given in attacks.items():
            if given is not None and not isinstance(given, Attack):
                raise TypeError(f"`{name}` must be an attack such as PGD(eps=8/255), got {given!r}")
        if action not in get_args(Action):
            raise ValueError(f"`action` must be one of {get_args(Action)}, got {action!r}")
        if fallback_attack is not None and action != "rollback":
            raise ValueError(f"`fallback_attack` is used after a rollback: set action='rollback', got {action!r}")
        if not 0 < max_kept < 1:
            raise ValueError(f"`max_kept` must lie between 0 and 1, a share of the best PGD accuracy, got {max_kept!r}")
        if strong_attack is None and self._given is not None:
            strong_attack = _short_pgd(self._given)
        self.attack = attack
        self.strong_attack = None if strong_attack is None else strong_attack.for_evaluation()
        self.action = action
        self.fallback_attack = fallback_attack
        self.max_kept = max_kept
        self._collapsed = False
        self._on_fallback = False
        self._snapshot: Snapshot | None = None
        self._has_warned = False  # of masked gradients, in this run

    @property
    def state_key(self) -> str:
        """Tell detectors apart by what they measure and how they log it; the same before fit, in it and after."""
        ball = None if self._given is None else self._given.ball
        return self._generate_state_key(
            eps=plain_eps(self._given),
            norm="linf" if ball is None else ball.norm,
            attack=repr(self.attack),
            strong_attack=repr(self.strong_attack),
            every_n_epochs=self.every_n_epochs,
            every_n_steps=self.every_n_steps,
            max_samples=self.max_samples,
            max_kept=self.max_kept,
            bounds=(0.0, 1.0) if ball is None else ball.bounds,
            normalization=repr(None if self._given is None else self._given.normalization),
            keys=[self.input_key, self.label_key],
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
        """Check that module and strategy can be watched, and take the training attack's ball if none was given."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        trained_with = getattr(pl_module, "attack", None)
        if self.fallback_attack is not None and not isinstance(trained_with, Attack):
            raise MisconfigurationException(
                f"`fallback_attack` replaces the module's attribute `attack`, and {type(pl_module).__name__} has no "
                "attack there: use AdversarialTraining, or leave `fallback_attack` out to stop after the rollback"
            )
        if self._given is None and self._on_fallback and trained_with is self.fallback_attack:
            return  # the ball stays that of the attack that our own fallback has replaced
        around = self._given or training_neighborhood(pl_module, type(self).__name__)
        strong_attack = self.strong_attack or _short_pgd(around).for_evaluation()
        self._gauge = Gauge(around.ball, around.normalization, self.attack, strong_attack)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run; or take up the fallback attack where a resumed run had it."""
        super().on_train_start(trainer, pl_module)
        if self._on_fallback and self.fallback_attack is None:
            raise MisconfigurationException(
                "the checkpoint comes from a run that went on with its `fallback_attack`, and this detector has none: "
                "give it the same `fallback_attack`"
            )
        if self._on_fallback:
            _set_attack(pl_module, self.fallback_attack)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {
            **super().state_dict(),
            "collapsed": self._collapsed,
            "on_fallback": self._on_fallback,
            "snapshot": self._snapshot,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        super().load_state_dict(state_dict)
        self._collapsed = state_dict["collapsed"]
        self._on_fallback = state_dict["on_fallback"]
        self._snapshot = state_dict["snapshot"]

    def _forget(self) -> None:
        # Another network's best accuracy would make this one's early checks look like a collapse.
        super()._forget()
        self._has_warned = False
        self._snapshot, self._on_fallback, self._collapsed = None, False, False

    def _inspect(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gauge.inspect(trainer, pl_module, self._probe_set.mine)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        measured = self._gauge.measure(trainer, pl_module, self._probe_set)
        row = measured.accuracies
        symptom = masking_symptom(
            zero_gradients=measured.zero_gradients,
            acc_fgsm=row["acc_fgsm"] if self._gauge.compares_like_with_like else None,
            acc_pgd=row["acc_pgd"],
            samples=measured.samples,
        )
        if symptom is not None and not self._has_warned:
            rank_zero_warn(f"{self._logged_as}, epoch {trainer.current_epoch}: {symptom}")
            self._has_warned = True
        if self._collapsed:
            # Robustness flickers after a collapse: it is over when what was lost is back.
            detected = row["acc_pgd"] < _HEALTHY * self.best_pgd
        else:
            detected = has_collapsed(
                row["acc_fgsm"],
                row["acc_pgd"],
                max(self.best_pgd, row["acc_pgd"]),
                chance=measured.chance,
                samples=measured.samples,
                max_kept=self.max_kept,
            )
        is_new = detected and not self._collapsed
        self._collapsed = detected
        return {**row, "detected": float(detected), "onset": float(is_new)}

    def _draw(self) -> Figure:
        return draw_curves(self.history, self.detections, self._logged_as)

    def _summarize(self) -> str:
        return summarize(self.history, self.detections, self._logged_as)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super()._check(trainer, pl_module)
        row = self.history[-1]
        if row["detected"]:
            self._act(trainer, pl_module)
        elif self.action == "rollback" and row["acc_pgd"] >= _HEALTHY * self.best_pgd:
            self._snapshot = take_snapshot(trainer, pl_module)

    def _act(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        if row["onset"] or done:
            rank_zero_warn(
                f"Catastrophic overfitting at epoch {row['epoch']}, step {row['step']}: accuracy under PGD is "
                f"{row['acc_pgd']:.1%}, it was {self.best_pgd:.1%}; under the single-step attack it is "
                f"{row['acc_fgsm']:.1%}.{done}"
            )


def _short_pgd(around: Neighborhood) -> PGD:
    ball = around.ball
    return PGD(ball.eps, norm=ball.norm, bounds=ball.bounds, normalization=around.normalization)


def _set_attack(module: LightningModule, attack: Attack | None) -> None:
    setattr(module, "attack", attack)  # noqa: B010  # nn.Module's type knows of tensors and modules only

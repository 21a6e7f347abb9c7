"""Let the training attack's eps grow, or shrink, over the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from torch import Tensor

from pl_robust._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from pl_robust._number import parse_number
from pl_robust.attacks import Attack


class EpsSchedule(Callback):
    """Multiply the training attack's eps by a piecewise linear function of training time.

    The module must hold its training attack as ``attack``, as ``AdversarialTraining`` does. A step size that was set is
    multiplied as well, so that the attack keeps its shape. Only training batches see the scheduled eps, from their
    start to their end: validation, test, checkpoints and the other callbacks' checks at a batch's end, for which this
    one moves itself to the front, find the attack at its full eps.

    The factor depends on nothing but the time, so that a resumed run goes on where it was. Logs ``train/eps``, in input
    units, at every step (of an eps per channel, the largest).

    Args:
        points: (time, factor) pairs with rising times, joined by straight lines; before the first and after the last
            the factor is constant. ``[(0, 0), (5, 1)]`` is a linear warm-up over the first 5 epochs (as N-FGSM's on
            SVHN); ``[(0, 0.4), (24, 1)]`` a ramp.
        unit: of the times: ``"epoch"``, fractions included (the third of four batches of epoch 2 is at 2.5), or
            ``"step"``, the optimizer steps.

    Raises:
        ValueError: if the points are not as described.
        MisconfigurationException: at the start of fit, if the module holds no attack or the Trainer two schedules; at
            the first batch, if epochs are of unknown length and ``unit`` is ``"epoch"``.
    """

    def __init__(self, points: Sequence[tuple[float, float]], unit: Literal["epoch", "step"] = "epoch") -> None:
        super().__init__()
        try:
            pairs = [(parse_number(time, "time"), parse_number(factor, "factor")) for time, factor in points]
        except (TypeError, ValueError):
            raise ValueError(
                f"`points` must be (time, factor) pairs of numbers, such as [(0, 0), (5, 1)], got {points!r}"
            ) from None
        if not pairs or any(time >= later for (time, _), (later, _) in pairwise(pairs)):
            raise ValueError(f"`points` must be (time, factor) pairs with rising times, at least one, got {points!r}")
        if not all(math.isfinite(time) and 0 <= factor < math.inf for time, factor in pairs):
            raise ValueError(f"`points` must have finite times, and finite factors of at least 0, got {points!r}")
        if unit not in ("epoch", "step"):
            raise ValueError(f"`unit` must be 'epoch' or 'step', got {unit!r}")
        self.points = pairs
        self.unit = unit
        self._full: Attack | None = None  # during a batch only
        self._scaled: Attack | None = None

    def factor(self, time: float) -> float:
        """Give the factor of eps at a time."""
        times, factors = zip(*self.points, strict=True)
        return float(np.interp(time, times, factors))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is an attack to schedule, and that its eps may grow so far."""
        if stage != "fit":
            return
        attack = getattr(pl_module, "attack", None)
        if not isinstance(attack, Attack):
            raise MisconfigurationException(
                f"EpsSchedule changes the eps of the module's attribute `attack`, and {type(pl_module).__name__} has "
                "no attack there: use AdversarialTraining"
            )
        if sum(isinstance(other, EpsSchedule) for other in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "there must be one EpsSchedule in a Trainer, got more: put their points into one"
            )
        attack.scaled(max(factor for _, factor in self.points))
        others = [other for other in trainer.callbacks if other is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]  # the Trainer's connectors set it

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the scheduled attack in place."""
        self._put_back(pl_module)  # a batch that was skipped has had no end
        attack: Any = pl_module.attack  # asked for anew: a detector's rollback may have put another one there
        factor = self.factor(self._time(trainer, batch_idx))
        self._full, self._scaled = attack, attack.scaled(factor)
        _put(pl_module, self._scaled)
        eps = self._scaled.eps
        largest = float(eps.max()) if isinstance(eps, Tensor) else eps
        pl_module.log("train/eps", largest, on_step=True, on_epoch=False, batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the full attack back."""
        self._put_back(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the full attack back, if the last batch was skipped."""
        self._put_back(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the full attack back, if the last batch was skipped."""
        self._put_back(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the full attack back."""
        self._put_back(pl_module)

    def _time(self, trainer: Trainer, batch_idx: int) -> float:
        if self.unit == "step":
            return trainer.global_step
        if trainer.num_training_batches == math.inf:
            raise MisconfigurationException(
                "EpsSchedule(unit='epoch') needs to know how long an epoch is, and this training data has no length: "
                "use unit='step', or the Trainer's `limit_train_batches`"
            )
        return trainer.current_epoch + batch_idx / trainer.num_training_batches

    def _put_back(self, module: LightningModule) -> None:
        if self._full is not None and getattr(module, "attack", None) is self._scaled:
            _put(module, self._full)
        self._full = self._scaled = None


def _put(module: LightningModule, attack: Attack) -> None:
    setattr(module, "attack", attack)  # noqa: B010  # nn.Module's type knows of tensors and modules only

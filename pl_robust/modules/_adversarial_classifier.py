"""What the modules that train on adversarial examples share: all but how the loss is made of them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pl_robust._lightning import LRSchedulerCallable, OptimizerCallable, rank_zero_warn
from pl_robust.attacks import PGD, Attack
from pl_robust.modules._classifier import Classifier
from pl_robust.modules._evaluation import find_masking
from pl_robust.modules._schedules import triangular


class AdversarialClassifier(Classifier):
    """A ``Classifier`` with a training attack, evaluated under it and others; a subclass brings ``training_step``.

    Validation and test log acc_adv under the training attack and acc_<name> under each of ``eval_attacks``, and warn of
    masked gradients, once in a fit. Arguments are those of the subclasses, which document them.
    """

    schedules: ClassVar = {"triangular": triangular}
    shown = "acc_pgd"

    def __init__(
        self,
        net: nn.Module | str,
        attack: Attack,
        *,
        eval_attacks: dict[str, Attack] | None,
        num_classes: int,
        optimizer: OptimizerCallable,
        lr_scheduler: str | LRSchedulerCallable,
        lr_peak: float | str,
        lr_scheduler_interval: str,
        input_key: str | int,
        label_key: str | int,
    ) -> None:
        super().__init__(
            net,
            num_classes=num_classes,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_peak=lr_peak,
            lr_scheduler_interval=lr_scheduler_interval,
            input_key=input_key,
            label_key=label_key,
        )
        if not isinstance(attack, Attack):
            raise TypeError(f"`attack` must be an attack such as FGSM(eps=8/255), got {attack!r}")
        self.attack = attack
        self.eval_attacks = _eval_attacks(eval_attacks, attack)
        self._has_warned = False  # of masked gradients, in this fit

    def on_fit_start(self) -> None:
        """Start a new run."""
        self._has_warned = False

    def _log_training(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Log the loss of a training batch, and the accuracy on its adversarial examples."""
        self.train_accuracy(logits, y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        self.log("train/acc_adv", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(y))

    def _attacks(self) -> dict[str, Attack]:
        return {"adv": self.attack.for_evaluation(), **self.eval_attacks}

    def _end_evaluation(self, split: str) -> None:
        has_warned = self._has_warned
        for outcome in self._outcomes(split):
            counts = self.trainer.strategy.reduce(outcome.evaluation.counts, reduce_op="sum")
            symptom = find_masking(self._attacks(), outcome.accuracies, counts)
            if symptom is not None and not self._has_warned and not self.trainer.sanity_checking:
                rank_zero_warn(f"{split}{outcome.end}: {symptom}")
                has_warned = self.trainer.state.fn == "fit"
        self._has_warned = has_warned
        super()._end_evaluation(split)


def _eval_attacks(given: dict[str, Attack] | None, attack: Attack) -> dict[str, Attack]:
    """The attacks of validation and test beside the training attack, in their form for evaluation.

    Raises:
        ValueError: if a name is taken or cannot stand in a metric's name.
        TypeError: if a value is no attack.
    """
    if given is None:
        given = {"pgd": PGD(attack.eps, norm=attack.norm, bounds=attack.bounds, normalization=attack.normalization)}
    for name, other in given.items():
        if name == "adv" or not name.isidentifier():
            raise ValueError(
                f"a name in `eval_attacks` becomes the metric acc_<name>: it must be an identifier other than 'adv', "
                f"which is the training attack, got {name!r}"
            )
        if not isinstance(other, Attack):
            raise TypeError(f"`eval_attacks`[{name!r}] must be an attack such as PGD(eps=8/255), got {other!r}")
    return {name: other.for_evaluation() for name, other in given.items()}

"""Adversarial training: each batch is replaced by its adversarial twin before the usual training step."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.optimizer import Optimizer

from pl_robust._batch import split_batch
from pl_robust._lightning import LRSchedulerCallable, OptimizerCallable, unsavable
from pl_robust.attacks import Attack
from pl_robust.losses import Regularizer
from pl_robust.modules._adversarial_classifier import AdversarialClassifier


def published_sgd(parameters: Any) -> Optimizer:
    """SGD with the CO papers' settings: peak learning rate 0.2, momentum 0.9, weight decay 5e-4."""
    return SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4)


class AdversarialTraining(AdversarialClassifier):
    r"""Train a classifier on adversarial examples (Madry et al. 2018, eq. 2.1; Wong et al. 2020; de Jorge et al. 2022).

    Minimizes :math:`\mathbb{E}\,\ell(f_\theta(x_{adv}), y)`, :math:`x_{adv}` from ``attack``. ``FGSM``, RS-FGSM
    (``FGSM`` with a random start), ``NFGSM`` and ``PGD`` adversarial training differ in the attack only. The defaults
    are those of the catastrophic-overfitting papers: SGD, learning rate 0 -> 0.2 -> 0 per step, cross-entropy.

    Logs train/loss and train/acc_adv; and for each of val and test: loss and acc on clean inputs, acc_adv under the
    training attack, acc_<name> under each of ``eval_attacks``. Dataloaders in a dict (Lightning 2) have its keys behind
    these names (test/acc/clean), and test prints a table of them. Validation and test run in eval mode, with noise that
    depends on the batch only, so that two evaluations of one network agree; samples that a DistributedSampler repeats
    are not counted. Both work with the Trainer's defaults (inference mode on). A network whose gradients are masked
    draws a warning.

    Args:
        net: the network, images [B, C, H, W] -> logits [B, num_classes]; or a name of ``pl_robust.models``, built for
            ``num_classes``; in YAML also any class_path.
        attack: the training attack; its forwards run on the bare net, with batch-norm as its ``batch_norm`` says.
        eval_attacks: name -> attack for validation and test; None means ``{"pgd": PGD}`` with the training attack's
            ball and 10 steps.
        regularizer: how the training loss is made, ``GradAlign`` or ``TRADES`` for example; None means cross-entropy on
            the adversarial examples.
        num_classes: number of classes.
        optimizer: parameters -> optimizer; with the triangular schedule its learning rate is the peak.
        lr_scheduler: ``"triangular"`` (0 -> lr -> 0 over the whole run, per step), ``"constant"``, or optimizer ->
            scheduler.
        lr_peak: where in the run the triangle has its peak, between 0 and 1.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.

    Raises:
        TypeError: if ``net`` or an attack is of another type.
        ValueError: if an argument is not among the allowed ones.
        MisconfigurationException: at the start of fit, if the triangular schedule meets a run without an end.
    """

    def __init__(
        self,
        net: nn.Module | str,
        attack: Attack,
        *,
        eval_attacks: dict[str, Attack] | None = None,
        regularizer: Regularizer | None = None,
        num_classes: int = 10,
        optimizer: OptimizerCallable = published_sgd,
        lr_scheduler: Literal["triangular", "constant"] | LRSchedulerCallable = "triangular",
        lr_peak: float | str = 0.5,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        super().__init__(
            net,
            attack,
            eval_attacks=eval_attacks,
            num_classes=num_classes,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_peak=lr_peak,
            lr_scheduler_interval=lr_scheduler_interval,
            input_key=input_key,
            label_key=label_key,
        )
        self.save_hyperparameters(
            ignore=unsavable(
                net=net,
                attack=attack,
                eval_attacks=eval_attacks,
                regularizer=regularizer,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
            )
        )
        if regularizer is not None and not isinstance(regularizer, Regularizer):
            raise TypeError(f"`regularizer` must be a regularizer such as GradAlign(), or None, got {regularizer!r}")
        if regularizer is not None:
            regularizer.check(attack)
        self.regularizer = regularizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Attack the batch and give the loss, on the adversarial examples or as the regularizer has it."""
        x, y = split_batch(batch, self.input_key, self.label_key)
        if self.regularizer is None:
            logits = self(self.attack(self.net, x, y))
            loss = F.cross_entropy(logits, y)
        else:
            loss, logits = self.regularizer(self.net, self.attack, x, y)
        self._log_training(loss, logits, y)
        return loss

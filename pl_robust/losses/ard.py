"""ARD: a student that answers adversarial examples as a robust teacher answers the clean images.

Goldblum, Fowl, Feizi, Goldstein, "Adversarially robust distillation", AAAI 2020, https://arxiv.org/abs/1905.09747.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import Attack
from pl_robust.losses._soft_labels import (
    Reduction,
    averaged,
    check_answers,
    check_labels,
    check_reduction,
    divergence,
    log_softmax,
    parse_share,
    parse_temperature,
)
from pl_robust.losses.distillation import Distillation, Progress, Teacher


def ard_loss(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    teacher_log_probabilities: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: Reduction = "batch_and_classes",
) -> Tensor:
    r"""The objective of ARD, scaled as in the authors' code.

    :math:`\alpha\tau^2\,\overline{\mathrm{KL}}(p_T^\tau(x) \,\|\, p^\tau(x_{adv})) + (1-\alpha)\,\ell_{CE}(p(x), y)`
    with :math:`p^\tau = \mathrm{softmax}(z/\tau)`. Their divergence is a mean over batch and classes, K times smaller
    than the mean over the batch, while their cross-entropy is a mean over the batch: ``reduction`` also changes the
    balance of the two.

    Args:
        logits: the student's, of clean inputs, float [B, K].
        logits_adv: the student's, of adversarial ones, [B, K].
        y: labels, int64 [B].
        teacher_log_probabilities: the teacher's, of clean inputs and at that temperature, [B, K].
        alpha: the teacher's share in [0, 1].
        temperature: :math:`\tau`, above 0.
        reduction: of the divergence: ``"batch_and_classes"``, the published mean over B and K; or ``"batch"``, summed
            over the classes and averaged over the batch.

    Returns:
        A scalar; float32 for half precision.

    Raises:
        TypeError: if a number is none.
        ValueError: if an argument is not as described, shapes do not fit, or, on the CPU, the teacher's answers are no
            log-probabilities.
    """
    check_answers(logits, logits_adv, teacher=teacher_log_probabilities)
    check_labels(y, logits)
    check_reduction(reduction)
    alpha, temperature = parse_share(alpha, "alpha"), parse_temperature(temperature)
    imitation = divergence(logits_adv, teacher_log_probabilities, temperature)
    loss = alpha * temperature**2 * averaged(imitation, logits.shape[1], reduction)
    # At alpha 1 the clean answers get no gradient, and need no backward pass that would multiply by zero.
    return loss if alpha == 1 else loss + (1 - alpha) * F.nll_loss(log_softmax(logits), y)


class ARD(Distillation):
    """Train on ``ard_loss``: the teacher is asked about clean inputs, the attack works on the labels.

    The defaults are those of the authors' code. On CIFAR-10 they take ``PGD("8/255", step_size="2/255")`` with
    batch-norm in training mode (``batch_norm="train"``, as is the default), 200 epochs of SGD at learning rate 0.1, a
    tenth from epoch 100 and again from 150, weight decay 2e-4. As there, a second forward of the student answers the
    clean inputs, and moves batch-norm's running statistics, also where ``alpha=1`` gives it no part in the loss.

    Args:
        alpha: the teacher's share in [0, 1]; the rest goes to cross-entropy on clean inputs.
        temperature: of teacher and student in the teacher's term, which it multiplies by its square.
        reduction: of the divergence: ``"batch_and_classes"`` as published, or ``"batch"``: as many times more as there
            are classes.

    Raises:
        TypeError: if a number is none.
        ValueError: if an argument is not as described.
    """

    def __init__(
        self, alpha: float | str = 1.0, temperature: float | str = 30.0, reduction: Reduction = "batch_and_classes"
    ) -> None:
        check_reduction(reduction)
        self.alpha = parse_share(alpha, "alpha")
        self.temperature = parse_temperature(temperature)
        self.reduction = reduction

    @property
    def clean_teacher(self) -> bool:
        """True: the teacher never sees an adversarial example."""
        return True

    def __call__(
        self, net: nn.Module, teacher: Teacher, attack: Attack, x: Tensor, y: Tensor, *, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Compute divergence and cross-entropy. See ``Distillation``."""
        x_adv = attack(net, x, y)
        log_teacher = teacher(x, self.temperature, clean=True)  # before the student's graph takes the memory
        logits_adv = net(x_adv)
        with torch.set_grad_enabled(self.alpha < 1 and torch.is_grad_enabled()):
            logits = net(x)
        loss = ard_loss(
            logits,
            logits_adv,
            y,
            log_teacher,
            alpha=self.alpha,
            temperature=self.temperature,
            reduction=self.reduction,
        )
        return loss, logits_adv

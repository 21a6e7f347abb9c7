"""RSLAD: a robust teacher's soft labels in place of the hard ones, in the attack as well as in the loss.

Zi, Zhao, Ma, Jiang, "Revisiting adversarial robustness distillation: robust soft labels make student better", ICCV
2021, https://arxiv.org/abs/2108.07969.
"""

from __future__ import annotations

from torch import Tensor, nn

from pl_robust.attacks import Attack
from pl_robust.losses._soft_labels import (
    Reduction,
    averaged,
    check_answers,
    check_reduction,
    divergence,
    parse_weight,
)
from pl_robust.losses.distillation import Distillation, Progress, Teacher


def rslad_loss(
    logits: Tensor,
    logits_adv: Tensor,
    teacher_log_probabilities: Tensor,
    *,
    adversarial_weight: float = 5 / 6,
    clean_weight: float = 1 / 6,
    reduction: Reduction = "batch_and_classes",
) -> Tensor:
    r"""The objective of RSLAD, scaled as in the authors' code.

    :math:`\frac{5}{6}\,\overline{\mathrm{KL}}(p_T(x) \,\|\, p(x_{adv})) + \frac{1}{6}\,\overline{\mathrm{KL}}(p_T(x)
    \,\|\, p(x))`, no labels. Their divergences are means over batch and classes, K times smaller than means over the
    batch; for CIFAR-100 they multiply both by 10. Their code adds 1e-5 to the teacher's probabilities in the logarithm
    of its entropy, a constant without gradient, which is not done here.

    Args:
        logits: the student's, of clean inputs, float [B, K].
        logits_adv: the student's, of adversarial ones, [B, K].
        teacher_log_probabilities: the teacher's, of clean inputs, [B, K].
        adversarial_weight: of the first term.
        clean_weight: of the second.
        reduction: ``"batch_and_classes"``, the published mean over B and K; or ``"batch"``, summed over the classes and
            averaged over the batch.

    Returns:
        A scalar; float32 for half precision.

    Raises:
        TypeError: if a weight is no number.
        ValueError: if an argument is not as described, shapes do not fit, or, on the CPU, the teacher's answers are no
            log-probabilities.
    """
    check_answers(logits, logits_adv, teacher=teacher_log_probabilities)
    check_reduction(reduction)
    adversarial = parse_weight(adversarial_weight, "adversarial_weight") * divergence(
        logits_adv, teacher_log_probabilities
    )
    clean = parse_weight(clean_weight, "clean_weight") * divergence(logits, teacher_log_probabilities)
    return averaged(adversarial + clean, logits.shape[1], reduction)


class RSLAD(Distillation):
    """Train on ``rslad_loss``, with adversarial examples that maximize KL(teacher(x) || student(x')).

    The weights are those of the authors' code on CIFAR-10; theirs on CIFAR-100 are ten times as large,
    ``RSLAD("50/6", "10/6")``. They attack with the student in eval mode, ``PGD("8/255", step_size="2/255",
    batch_norm="eval")``, from normal noise of 0.001 around x; here the start is the attack's own. Then the student, in
    training mode, answers the adversarial examples and the clean inputs in two forwards. 300 epochs of SGD at learning
    rate 0.1, a tenth after epochs 215, 260 and 285, weight decay 2e-4.

    Args:
        adversarial_weight: of the divergence at adversarial examples.
        clean_weight: of the divergence at clean inputs.
        reduction: ``"batch_and_classes"`` as published, or ``"batch"``: as many times more as there are classes.

    Raises:
        TypeError: if a weight is no number.
        ValueError: if an argument is not as described.
    """

    def __init__(
        self,
        adversarial_weight: float | str = 5 / 6,
        clean_weight: float | str = 1 / 6,
        reduction: Reduction = "batch_and_classes",
    ) -> None:
        check_reduction(reduction)
        self.adversarial_weight = parse_weight(adversarial_weight, "adversarial_weight")
        self.clean_weight = parse_weight(clean_weight, "clean_weight")
        self.reduction = reduction

    @property
    def clean_teacher(self) -> bool:
        """True: the teacher never sees an adversarial example."""
        return True

    def __call__(
        self, net: nn.Module, teacher: Teacher, attack: Attack, x: Tensor, y: Tensor, *, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Compute both divergences. See ``Distillation``."""
        log_teacher = teacher(x, clean=True)
        logits_adv = net(attack(net, x, y, loss=divergence, targets=log_teacher))
        loss = rslad_loss(
            net(x),
            logits_adv,
            log_teacher,
            adversarial_weight=self.adversarial_weight,
            clean_weight=self.clean_weight,
            reduction=self.reduction,
        )
        return loss, logits_adv

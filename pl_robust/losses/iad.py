"""IAD: where the teacher is not to be trusted, the student listens to itself.

Zhu, Yao, Han, Zhang, Liu, Niu, Zhou, Xu, Yang, "Reliable adversarial distillation with unreliable teachers", ICLR 2022,
https://arxiv.org/abs/2106.04928.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.attacks import Attack
from pl_robust.losses._soft_labels import (
    check_answers,
    check_labels,
    divergence,
    log_softmax,
    parse_temperature,
    parse_weight,
)
from pl_robust.losses.distillation import Distillation, Progress, Teacher


def iad_loss(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    teacher_log_probabilities: Tensor,
    teacher_log_probabilities_adv: Tensor | None,
    *,
    beta: float = 0.1,
    temperature: float = 1.0,
) -> Tensor:
    r"""The objective of IAD-I, as in the authors' code.

    :math:`\frac{1}{B}\sum_i \tau^2\,\mathrm{KL}(p_T^\tau(x_i) \,\|\, p^\tau(x_{adv,i})) + (1-w_i)\,\mathrm{KL}(p(x_i)
    \,\|\, p(x_{adv,i}))` with :math:`w_i = p_T(y_i \,|\, x_{adv,i})^\beta`: how far the teacher is to be trusted.
    Averaged over the batch, not over the classes as ARD and RSLAD are. Only the second term, the introspection, has a
    weight, is always at temperature 1, and lets gradients flow through both of its sides.

    Args:
        logits: the student's, of clean inputs, float [B, K].
        logits_adv: the student's, of adversarial ones, [B, K].
        y: labels, int64 [B].
        teacher_log_probabilities: the teacher's, of clean inputs and at that temperature, [B, K].
        teacher_log_probabilities_adv: the teacher's, of adversarial examples and at temperature 1, [B, K]; None trusts
            it in everything (:math:`w = 1`), as is done in the first epochs.
        beta: how fast trust is lost, at least 0.
        temperature: :math:`\tau` of the first term, above 0.

    Returns:
        A scalar; float32 for half precision.

    Raises:
        TypeError: if a number is none.
        ValueError: if an argument is not as described, shapes do not fit, or, on the CPU, the teacher's answers are no
            log-probabilities.
    """
    check_answers(logits, logits_adv, teacher=teacher_log_probabilities)
    check_labels(y, logits)
    beta, temperature = parse_weight(beta, "beta"), parse_temperature(temperature)
    imitation = temperature**2 * divergence(logits_adv, teacher_log_probabilities, temperature)
    if teacher_log_probabilities_adv is None:
        return imitation.mean()
    check_answers(logits, teacher=teacher_log_probabilities_adv)
    log_trust = teacher_log_probabilities_adv.detach().gather(1, y[:, None])[:, 0]
    trust = (beta * log_trust.clamp_min(torch.finfo(log_trust.dtype).min)).exp()  # 0 ** 0 is 1
    introspection = divergence(logits_adv, log_softmax(logits))
    return (imitation + (1 - trust) * introspection).mean()


class IAD(Distillation):
    """Train on ``iad_loss``; the attack works on the labels.

    The defaults are those of the authors' code (IAD-I). On CIFAR-10 they take ``PGD("8/255", step_size="2/255")`` with
    batch-norm in training mode, as is the default, and SGD as ARD. Before ``start_epoch`` the teacher is trusted in
    everything. A second forward of the student, in training mode, answers the clean inputs in all epochs; they run it
    once more from ``start_epoch`` on, with the same answer, and batch-norm's running statistics move a third time.

    Args:
        beta: how fast trust in the teacher is lost, at least 0; 0 trusts it in everything.
        start_epoch: the first epoch, counted from 0, in which the teacher is asked about the adversarial examples.
        temperature: of teacher and student in the teacher's term, which it multiplies by its square.

    Raises:
        TypeError: if a number is none, or ``start_epoch`` no integer.
        ValueError: if an argument is not as described.
    """

    def __init__(self, beta: float | str = 0.1, start_epoch: int = 60, temperature: float | str = 1.0) -> None:
        check_count(start_epoch, "start_epoch", least=0)
        self.beta = parse_weight(beta, "beta")
        self.start_epoch = start_epoch
        self.temperature = parse_temperature(temperature)

    @property
    def clean_teacher(self) -> bool:
        """False: from the start epoch on, the teacher is asked about adversarial examples."""
        return False

    def __call__(
        self, net: nn.Module, teacher: Teacher, attack: Attack, x: Tensor, y: Tensor, *, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Compute imitation and introspection. See ``Distillation``."""
        introspects = progress.epoch >= self.start_epoch
        x_adv = attack(net, x, y)
        log_teacher = teacher(x, self.temperature, clean=True)  # before the student's graph takes the memory
        log_teacher_adv = teacher(x_adv, clean=False) if introspects else None
        logits_adv = net(x_adv)
        with torch.set_grad_enabled(introspects and torch.is_grad_enabled()):
            logits = net(x)
        loss = iad_loss(
            logits,
            logits_adv,
            y,
            log_teacher,
            log_teacher_adv,
            beta=self.beta,
            temperature=self.temperature,
        )
        return loss, logits_adv

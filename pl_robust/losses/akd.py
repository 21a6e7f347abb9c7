"""AKD: adversarial training on a mixture of the labels and a robust teacher's answers.

Maroto, Ortiz-Jiménez, Frossard, "On the benefits of knowledge distillation for adversarial robustness", 2022,
https://arxiv.org/abs/2203.07159. The distillation loss itself: Hinton, Vinyals, Dean, "Distilling the knowledge in a
neural network", 2015, https://arxiv.org/abs/1503.02531.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import Attack
from pl_robust.losses._soft_labels import (
    check_answers,
    check_classes,
    check_label_shape,
    check_labels,
    divergence,
    log_softmax,
    parse_share,
    parse_temperature,
)
from pl_robust.losses.distillation import Distillation, Progress, Teacher

TeacherInput: TypeAlias = Literal["adversarial", "clean"]
AttackObjective: TypeAlias = Literal["label", "mixture", "teacher"]


def distillation_loss(
    logits: Tensor,
    y: Tensor,
    teacher_log_probabilities: Tensor,
    *,
    teacher_weight: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    r"""Cross-entropy to a mixture of labels and a teacher's answers, averaged over the batch.

    :math:`\frac{1}{B}\sum_i (1-\lambda)\,\ell_{CE}(p(x_i), y_i) + \lambda\tau^2\,\ell_{CE}(p^\tau(x_i), p_T^\tau(x_i))`
    with :math:`p^\tau = \mathrm{softmax}(z/\tau)`. At temperature 1 this is the cross-entropy to
    :math:`q = (1-\lambda)\,\mathrm{onehot}(y) + \lambda p_T`. The teacher's entropy is not taken off: the value is
    larger by :math:`\lambda\tau^2 H(p_T^\tau)` than with the divergence in the place of the second cross-entropy, the
    gradient is the same. The factor :math:`\tau^2` keeps the gradient's size when the temperature changes.

    Args:
        logits: the student's, float [B, K].
        y: labels, int64 [B].
        teacher_log_probabilities: the teacher's at that temperature, [B, K]: of one teacher
            ``log_softmax(its_logits / temperature)``; of several, the logarithm of their mean probabilities.
        teacher_weight: :math:`\lambda`, the teacher's share in [0, 1].
        temperature: :math:`\tau`, above 0.

    Returns:
        A scalar, in nats; float32 for half precision.

    Raises:
        TypeError: for another type.
        ValueError: if a number is not as described, shapes do not fit, the batch is empty, or, on the CPU,
            where looking is free, the teacher's answers are no log-probabilities.

    Example:
        >>> uniform = torch.tensor([[0.5, 0.5]]).log()
        >>> distillation_loss(torch.zeros(1, 2), torch.tensor([0]), uniform, teacher_weight=0.5)  # log 2
        tensor(0.6931)
    """
    check_answers(logits, teacher=teacher_log_probabilities)
    check_labels(y, logits)
    weight = parse_share(teacher_weight, "teacher_weight")
    return _losses(logits, y, teacher_log_probabilities, weight, parse_temperature(temperature)).mean()


def _losses(logits: Tensor, y: Tensor, log_teacher: Tensor, weight: float, temperature: float) -> Tensor:
    log_student = log_softmax(logits)
    hard = F.nll_loss(log_student, y, reduction="none")
    tempered = log_student if temperature == 1 else log_softmax(logits, temperature)
    soft = -(log_teacher.exp() * tempered).sum(1)
    return (1 - weight) * hard + weight * temperature**2 * soft


def _mixture(logits: Tensor, labels_and_teacher: Tensor, *, weight: float, temperature: float) -> Tensor:
    """The loss as attacks take it: all that the logits are compared with in one tensor [B, 1 + K]."""
    y, log_teacher = labels_and_teacher[:, 0].long(), labels_and_teacher[:, 1:]
    check_classes(logits, log_teacher)
    return _losses(logits, y, log_teacher, weight, temperature)


class AKD(Distillation):
    r"""Train on ``distillation_loss`` at adversarial examples of the student.

    The target is :math:`q = (1-\lambda)\,\mathrm{onehot}(y) + \lambda p_T`. The paper's code is not public: what its
    abstract leaves open is an argument here. Another method, with a second teacher, goes by the name of AKD2 in the
    code of Zhu et al. 2022 (see ``IAD``).

    Where the weight is 0 nobody asks the teacher, whatever the other arguments, and the loss is adversarial training's,
    bit for bit: ``F.cross_entropy(net(attack(net, x, y)), y)``. While it attacks, the teacher's answer is always the
    one at the clean inputs, held fixed; with ``teacher_input="adversarial"`` the loss then takes another at the
    adversarial ones.

    Args:
        teacher_weight: :math:`\lambda`, the teacher's share in [0, 1].
        teacher_input: what the teacher is asked about for the loss: the ``"adversarial"`` examples or the ``"clean"``
            inputs.
        attack_objective: what the attack ascends: its own loss, cross-entropy to the labels if it has none
            (``"label"``); ``distillation_loss`` (``"mixture"``); or KL(teacher || student) (``"teacher"``).
        temperature: :math:`\tau` of teacher and student in the teacher's term, which it multiplies by
            :math:`\tau^2`, and in the attack's.
        start_weight: the teacher's share in the first epoch; from it the share goes linearly to ``teacher_weight`` in
            the last. None keeps it at ``teacher_weight``.

    Raises:
        TypeError: if a weight or the temperature is no number.
        ValueError: if an argument is not as described; at the first batch, if the share shall change in a run of which
            nobody knows how many epochs it has.
    """

    def __init__(
        self,
        teacher_weight: float | str = 0.5,
        *,
        teacher_input: TeacherInput = "adversarial",
        attack_objective: AttackObjective = "label",
        temperature: float | str = 1.0,
        start_weight: float | str | None = None,
    ) -> None:
        self.teacher_weight = parse_share(teacher_weight, "teacher_weight")
        if teacher_input not in get_args(TeacherInput):
            raise ValueError(f"`teacher_input` must be one of {get_args(TeacherInput)}, got {teacher_input!r}")
        if attack_objective not in get_args(AttackObjective):
            raise ValueError(f"`attack_objective` must be one of {get_args(AttackObjective)}, got {attack_objective!r}")
        self.teacher_input = teacher_input
        self.attack_objective = attack_objective
        self.temperature = parse_temperature(temperature)
        self.start_weight = None if start_weight is None else parse_share(start_weight, "start_weight")

    @property
    def clean_teacher(self) -> bool:
        """Whether the loss takes the teacher's answers at clean inputs; attacks always do."""
        return self.teacher_input == "clean"

    def weight(self, progress: Progress) -> float:
        """Give the teacher's share in an epoch.

        Raises:
            ValueError: if it changes over the run, and the number of epochs is not known.
        """
        if self.start_weight is None:
            return self.teacher_weight
        if progress.epochs is None:
            raise ValueError(
                f"`start_weight`={self.start_weight} changes the teacher's weight over the run's epochs, and their "
                "number is not known: set max_epochs of the Trainer, or start_weight=None"
            )
        gone = min(1.0, progress.epoch / max(1, progress.epochs - 1))
        return (1 - gone) * self.start_weight + gone * self.teacher_weight

    def __call__(
        self, net: nn.Module, teacher: Teacher, attack: Attack, x: Tensor, y: Tensor, *, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Compute cross-entropy to labels and teacher. See ``Distillation``."""
        weight = self.weight(progress)
        if weight == 0:
            logits = net(attack(net, x, y))
            return F.cross_entropy(logits, y), logits
        if self.teacher_input == "clean" or self.attack_objective != "label":
            log_teacher = teacher(x, self.temperature, clean=True)
        if self.attack_objective == "label":
            x_adv = attack(net, x, y)
        elif self.attack_objective == "mixture":
            check_label_shape(y, log_teacher)
            loss = partial(_mixture, weight=weight, temperature=self.temperature)
            x_adv = attack(net, x, y, loss=loss, targets=torch.cat([y[:, None], log_teacher], 1))
        else:
            x_adv = attack(net, x, y, loss=partial(divergence, temperature=self.temperature), targets=log_teacher)
        if self.teacher_input == "adversarial":  # asked before the student's graph takes the memory
            log_teacher = teacher(x_adv, self.temperature, clean=False)
        logits = net(x_adv)
        loss_value = distillation_loss(logits, y, log_teacher, teacher_weight=weight, temperature=self.temperature)
        return loss_value, logits

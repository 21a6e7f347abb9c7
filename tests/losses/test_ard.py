from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.attacks import PGD
from pl_robust.losses import ARD, ard_loss
from tests.losses.distillation_toys import FIRST, Asked, ascend, batch, kl, norm_net, smooth_net, softmax, some_logits

Y = torch.tensor([0, 1, 2, 3, 4, 0])


def in_numpy(logits: Tensor, logits_adv: Tensor, teacher: Tensor, alpha: float, temperature: float) -> float:
    divergences = kl(softmax(teacher, temperature), softmax(logits_adv, temperature)) / 5
    hard = -np.log(softmax(logits)[np.arange(6), Y])
    return float(alpha * temperature**2 * divergences.mean() + (1 - alpha) * hard.mean())


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 30.0), (0.4, 3.0), (0.0, 1.0)])
def test_value_and_gradients_are_those_on_paper(alpha: float, temperature: float) -> None:
    """The gradients: a tau (p^tau - p_T^tau) / (B K), adversarial; (1 - a) (p - onehot) / B, clean."""
    logits, logits_adv, teacher, _ = some_logits()
    log_teacher = F.log_softmax(teacher / temperature, dim=1).detach()
    ours = ard_loss(logits, logits_adv, Y, log_teacher, alpha=alpha, temperature=temperature)
    assert ours.item() == pytest.approx(in_numpy(logits, logits_adv, teacher, alpha, temperature), rel=1e-9)
    clean, adversarial = torch.autograd.grad(ours, [logits, logits_adv], materialize_grads=True)
    np.testing.assert_allclose(clean, (1 - alpha) * (softmax(logits) - np.eye(5)[Y]) / 6, rtol=1e-9)
    soft = softmax(logits_adv, temperature) - softmax(teacher, temperature)
    np.testing.assert_allclose(adversarial, alpha * temperature * soft / 30, rtol=1e-9)


@pytest.mark.parametrize("reduction", ["batch_and_classes", "batch"])
def test_the_reductions_are_torchs(reduction: Literal["batch_and_classes", "batch"]) -> None:
    """Torch's KLDivLoss() and KLDivLoss(reduction="batchmean"): the one is K times smaller."""
    logits, logits_adv, teacher, _ = some_logits()
    log_teacher = F.log_softmax(teacher / 30, dim=1).detach()
    criterion = torch.nn.KLDivLoss(log_target=True, reduction="batchmean" if reduction == "batch" else "sum")
    divergence = criterion(F.log_softmax(logits_adv / 30, dim=1), log_teacher) / (1 if reduction == "batch" else 30)
    torch.testing.assert_close(ard_loss(logits, logits_adv, Y, log_teacher, reduction=reduction), 900 * divergence)


def test_the_attack_works_on_the_labels_and_the_teacher_sees_clean_inputs() -> None:
    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    torch.manual_seed(5)
    loss, logits_adv = ARD(0.6, 4.0, "batch")(net, teacher, PGD(0.2, steps=4), x, y, progress=FIRST)
    torch.manual_seed(5)
    x_adv = ascend(net, x, lambda logits: F.cross_entropy(logits, y, reduction="sum"), eps=0.2, steps=4)
    torch.testing.assert_close(logits_adv, net(x_adv))
    assert teacher.asked == [(4.0, True)]
    assert torch.equal(teacher.questions[0][0], x)
    assert ARD().clean_teacher
    log_teacher = F.log_softmax(teacher.net(x) / 4, dim=1).detach()
    expected = ard_loss(net(x), net(x_adv), y, log_teacher, alpha=0.6, temperature=4.0, reduction="batch")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_student_answers_the_clean_inputs_as_well(alpha: float) -> None:
    """In training mode, after the attack's two steps and the adversarial examples; with gradients where they count."""
    net, norm, forwards = norm_net()
    x, y = batch()
    loss, _ = ARD(alpha)(net, Asked(), PGD(0.1, steps=2), x, y, progress=FIRST)
    assert forwards == [(True, True)] * 3 + [(True, alpha < 1)]
    assert norm.num_batches_tracked == 4
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        ARD(alpha)(net, Asked(), PGD(0.1, steps=2), x, y, progress=FIRST)
    assert not any(grad for _, grad in forwards[-2:])  # none is switched on either

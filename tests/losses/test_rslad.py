from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.attacks import PGD
from pl_robust.losses import RSLAD, rslad_loss
from tests.losses.distillation_toys import FIRST, Asked, ascend, batch, kl, norm_net, smooth_net, softmax, some_logits


def in_numpy(logits: Tensor, logits_adv: Tensor, teacher: Tensor) -> float:
    adversarial = kl(softmax(teacher), softmax(logits_adv)).mean() / 5
    clean = kl(softmax(teacher), softmax(logits)).mean() / 5
    return float(5 / 6 * adversarial + 1 / 6 * clean)


def test_value_and_gradients_are_those_on_paper() -> None:
    """The gradients: the weight times (p - p_T) / (B K)."""
    logits, logits_adv, teacher, _ = some_logits()
    ours = rslad_loss(logits, logits_adv, F.log_softmax(teacher, dim=1).detach())
    assert ours.item() == pytest.approx(in_numpy(logits, logits_adv, teacher), rel=1e-12)
    clean, adversarial = torch.autograd.grad(ours, [logits, logits_adv])
    np.testing.assert_allclose(clean, (softmax(logits) - softmax(teacher)) / 30 / 6, rtol=1e-9)
    np.testing.assert_allclose(adversarial, (softmax(logits_adv) - softmax(teacher)) / 30 * 5 / 6, rtol=1e-9)


def test_value_and_gradient_are_those_of_the_authors_code_but_for_its_constant() -> None:
    """-a b + log(b + 1e-5) b with a the student's log-probabilities, averaged over everything."""
    logits, logits_adv, teacher, _ = some_logits()
    b = teacher.softmax(1).detach()

    def theirs(logits: Tensor) -> Tensor:
        return (-F.log_softmax(logits, dim=1) * b + (b + 1e-5).log() * b).mean()

    expected = 5 / 6 * theirs(logits_adv) + 1 / 6 * theirs(logits)
    ours = rslad_loss(logits, logits_adv, b.log())
    constant = (((b + 1e-5).log() - b.log()) * b).mean()
    assert constant > 1e-6
    torch.testing.assert_close(ours, expected - constant, rtol=1e-10, atol=0)
    for left, right in zip(
        torch.autograd.grad(ours, [logits, logits_adv]),
        torch.autograd.grad(expected, [logits, logits_adv]),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_its_scale() -> None:
    """Mean over the classes too, or not: a factor K; and the ten times of CIFAR-100 by the weights."""
    logits, logits_adv, teacher = some_logits(count=3)
    log_teacher = F.log_softmax(teacher, dim=1).detach()
    published = rslad_loss(logits, logits_adv, log_teacher)
    torch.testing.assert_close(rslad_loss(logits, logits_adv, log_teacher, reduction="batch"), 5 * published)
    torch.testing.assert_close(
        rslad_loss(logits, logits_adv, log_teacher, adversarial_weight=50 / 6, clean_weight=10 / 6), 10 * published
    )


def test_its_adversarial_examples_maximize_the_divergence_from_the_teacher() -> None:
    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    torch.manual_seed(5)
    loss, logits_adv = RSLAD("1/2", 2, "batch")(net, teacher, PGD(0.2, steps=4), x, y, progress=FIRST)
    assert teacher.asked == [(1.0, True)]
    assert torch.equal(teacher.questions[0][0], x)
    assert RSLAD().clean_teacher
    answers = teacher.net(x).softmax(1).detach()
    torch.manual_seed(5)
    criterion = torch.nn.KLDivLoss(reduction="sum")
    x_adv = ascend(net, x, lambda logits: criterion(F.log_softmax(logits, dim=1), answers), eps=0.2, steps=4)
    torch.testing.assert_close(logits_adv, net(x_adv))
    expected = rslad_loss(net(x), net(x_adv), answers.log(), adversarial_weight=0.5, clean_weight=2, reduction="batch")
    torch.testing.assert_close(loss, expected)


def test_the_published_way_of_batch_norm() -> None:
    """Two steps of the attack in eval mode, then the adversarial and the clean forward in training mode."""
    net, norm, forwards = norm_net()
    RSLAD()(net, Asked(), PGD(0.1, steps=2, batch_norm="eval"), *batch(), progress=FIRST)
    assert forwards == [(False, True)] * 2 + [(True, True)] * 2
    assert norm.num_batches_tracked == 2

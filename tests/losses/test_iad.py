from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.attacks import PGD
from pl_robust.losses import IAD, Progress, ard_loss, iad_loss
from tests.losses.distillation_toys import Asked, ascend, batch, kl, norm_net, smooth_net, softmax, some_logits

Y = torch.tensor([0, 1, 2, 3, 4, 0])


def in_numpy(
    logits: Tensor, logits_adv: Tensor, teacher: Tensor, teacher_adv: Tensor, beta: float, temperature: float
) -> float:
    imitation = temperature**2 * kl(softmax(teacher, temperature), softmax(logits_adv, temperature))
    trust = softmax(teacher_adv)[np.arange(6), Y] ** beta
    return float((imitation + (1 - trust) * kl(softmax(logits), softmax(logits_adv))).mean())


@pytest.mark.parametrize(("beta", "temperature"), [(0.1, 1.0), (2.0, 3.0), (0.0, 1.0)])
def test_value_and_gradients_are_those_on_paper(beta: float, temperature: float) -> None:
    """The gradient of KL(p || q) by the logits of p, through which introspection flows: p (log p / q - KL)."""
    logits, logits_adv, teacher, teacher_adv = some_logits()
    ours = iad_loss(
        logits,
        logits_adv,
        Y,
        F.log_softmax(teacher / temperature, dim=1).detach(),
        F.log_softmax(teacher_adv, dim=1),  # trust is a constant, whatever its graph
        beta=beta,
        temperature=temperature,
    )
    expected = in_numpy(logits, logits_adv, teacher, teacher_adv, beta, temperature)
    assert ours.item() == pytest.approx(expected, rel=1e-12)
    clean, adversarial, through_trust = torch.autograd.grad(
        ours, [logits, logits_adv, teacher_adv], materialize_grads=True
    )
    p, q = softmax(logits), softmax(logits_adv)
    distrust = 1 - softmax(teacher_adv)[np.arange(6), Y, None] ** beta
    np.testing.assert_allclose(clean, distrust * p * (np.log(p / q) - kl(p, q)[:, None]) / 6, rtol=1e-9, atol=1e-15)
    soft = softmax(logits_adv, temperature) - softmax(teacher, temperature)
    np.testing.assert_allclose(adversarial, (temperature * soft + distrust * (q - p)) / 6, rtol=1e-9, atol=1e-15)
    assert torch.equal(through_trust, torch.zeros(6, 5, dtype=torch.float64))


def test_a_trusted_teacher_leaves_nothing_but_imitation() -> None:
    """That of ARD, averaged over the batch only."""
    logits, logits_adv, teacher, _ = some_logits()
    log_teacher = F.log_softmax(teacher / 3, dim=1).detach()
    ours = iad_loss(logits, logits_adv, Y, log_teacher, None, temperature=3)
    torch.testing.assert_close(ours, ard_loss(logits, logits_adv, Y, log_teacher, temperature=3, reduction="batch"))


@pytest.mark.parametrize("epoch", [59, 60])
def test_introspection_sets_in_at_its_epoch(epoch: int) -> None:
    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    torch.manual_seed(5)
    loss, logits_adv = IAD(2.0)(net, teacher, PGD(0.2, steps=4), x, y, progress=Progress(epoch))
    torch.manual_seed(5)
    x_adv = ascend(net, x, lambda logits: F.cross_entropy(logits, y, reduction="sum"), eps=0.2, steps=4)
    torch.testing.assert_close(logits_adv, net(x_adv))
    log_teacher, log_teacher_adv = (F.log_softmax(teacher.net(inputs), dim=1).detach() for inputs in (x, x_adv))
    starts = epoch == 60
    assert teacher.asked == [(1.0, True), (1.0, False)][: 1 + starts]
    assert torch.equal(teacher.questions[0][0], x)
    if starts:
        torch.testing.assert_close(teacher.questions[1][0], x_adv)
    expected = iad_loss(net(x), net(x_adv), y, log_teacher, log_teacher_adv if starts else None, beta=2.0)
    torch.testing.assert_close(loss, expected)
    assert not IAD().clean_teacher


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_student_answers_the_clean_inputs_in_all_epochs(epoch: int) -> None:
    net, norm, forwards = norm_net()
    loss, _ = IAD(start_epoch=1)(net, Asked(), PGD(0.1, steps=2), *batch(), progress=Progress(epoch, 2))
    assert forwards == [(True, True)] * 3 + [(True, epoch == 1)]
    assert norm.num_batches_tracked == 4
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in net.parameters())

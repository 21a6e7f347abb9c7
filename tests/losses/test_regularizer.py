from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import FGSM, PGD, Attack, fgsm
from pl_robust.losses import Regularizer
from pl_robust.modules import AdversarialTraining
from tests.toys import loader, quiet_trainer

pytestmark = pytest.mark.lightning


class LogitDecay(Regularizer):
    """A user's own: cross-entropy on the adversarial examples + weight * mean square of their logits."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def check(self, attack: Attack) -> None:
        if isinstance(attack, PGD):
            raise ValueError("LogitDecay goes with single-step attacks, got PGD: take FGSM")

    def __call__(self, net: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(attack(net, x, y))
        return F.cross_entropy(logits, y) + self.weight * logits.square().mean(), logits


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_regularizer_of_ones_own_makes_the_loss(weight: float) -> None:
    """One step of SGD, written out."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    reference = copy.deepcopy(net)
    module = AdversarialTraining(
        net,
        FGSM(0.1),
        regularizer=LogitDecay(weight),
        num_classes=3,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler="constant",
    )
    quiet_trainer(max_steps=1).fit(module, loader(16))
    ((x, y),) = loader(16)
    logits = reference(fgsm(reference, x, y, eps=0.1))
    loss = F.cross_entropy(logits, y) + weight * logits.square().mean()
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    for before, after, gradient in zip(reference.parameters(), net.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient)


def test_it_is_asked_about_the_attack_at_construction() -> None:
    with pytest.raises(ValueError, match="LogitDecay goes with single-step attacks, got PGD: take FGSM"):
        AdversarialTraining(nn.Linear(2, 2), PGD(0.1), regularizer=LogitDecay(1.0))


def test_it_shows_its_parameters() -> None:
    assert repr(LogitDecay(0.5)) == "LogitDecay(weight=0.5)"

"""Adversarial training on two gloo processes: the attack's forwards and gradients pass DDP by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pl_robust.attacks import PGD, pgd
from pl_robust.modules import AdversarialTraining
from tests._processes import run_ranks
from tests.modules.test_adversarial_training import small_net
from tests.toys import assert_identical, quiet_trainer, stripes

pytestmark = pytest.mark.lightning


def fit(ranks: int) -> dict[str, Tensor]:
    net = small_net().eval()  # running statistics, so that a sample's gradient does not depend on its batch
    module = AdversarialTraining(
        net,
        PGD(0.1, steps=3, random_start=False),
        num_classes=3,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler="constant",
    )
    module.net.train = lambda mode=True: module.net  # type: ignore[method-assign]
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, devices=ranks, strategy="ddp")
    trainer.fit(module, DataLoader(stripes(32), batch_size=16, shuffle=False))
    return {key: value.detach() for key, value in net.state_dict().items()}


def test_a_step_on_two_ranks_is_the_step_on_both_batches() -> None:
    first, second = run_ranks(fit, 2, 2)
    assert_identical(first, second)
    net = small_net().eval()
    x, y = stripes(32).tensors
    loss = F.cross_entropy(net(pgd(net, x, y, eps=0.1, steps=3, random_start=False)), y)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    for (name, before), gradient in zip(net.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(first[name], (before - 0.1 * gradient).detach())

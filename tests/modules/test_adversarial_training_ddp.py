"""Adversarial training on two gloo processes: the attack's forwards and gradients pass DDP by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pl_robust.attacks import PGD, pgd
from pl_robust.losses import TRADES, GradAlign, Regularizer
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


class Seeded(AdversarialTraining):
    """Draws known noise on each rank, and keeps its batch."""

    batch: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batch = batch
        torch.manual_seed(self.global_rank)
        return super().training_step(batch, batch_idx)


def fit_regularized(regularizer: Regularizer) -> tuple[dict[str, Tensor], Any]:
    net = small_net().eval()
    module = Seeded(
        net,
        PGD(0.1, steps=2),
        regularizer=regularizer,
        num_classes=3,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler="constant",
    )
    module.net.train = lambda mode=True: module.net  # type: ignore[method-assign]
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, devices=2, strategy="ddp")
    trainer.fit(module, DataLoader(stripes(32), batch_size=16))
    return {key: value.detach() for key, value in net.state_dict().items()}, module.batch


@pytest.mark.parametrize("regularizer", [GradAlign(0.5), TRADES(2.0)], ids=["gradalign", "trades"])
def test_a_regularized_step_on_two_ranks_is_the_mean_of_both(regularizer: Regularizer) -> None:
    results = run_ranks(fit_regularized, 2, regularizer)
    assert_identical(results[0][0], results[1][0])
    net = small_net().eval()
    losses = []
    for rank, (_, (x, y)) in enumerate(results):
        torch.manual_seed(rank)
        losses.append(regularizer(net, PGD(0.1, steps=2), x, y)[0])
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(net.parameters()))
    for (name, parameter), gradient in zip(net.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(results[0][0][name], (parameter - 0.1 * gradient).detach())

"""A student on two gloo processes: teachers pass DDP by, and both processes fill one cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pl_robust.attacks import PGD, pgd
from pl_robust.losses import AKD, ARD, distillation_loss
from pl_robust.modules import AKDStudent
from tests._processes import run_ranks
from tests.modules.test_adversarial_training import small_net
from tests.modules.test_akd_student import always_eval, sgd, teacher
from tests.modules.test_teacher_cache import Counting, Indexed
from tests.toys import assert_identical, loader, quiet_trainer, stripes

pytestmark = pytest.mark.lightning


def student(teachers: Any, **arguments: Any) -> AKDStudent:
    net = always_eval(small_net().eval())  # so that a sample's gradient does not depend on its batch
    attack = PGD(0.1, steps=3, random_start=False)
    return AKDStudent(net, teachers, attack, num_classes=3, optimizer=sgd, lr_scheduler="constant", **arguments)


def step_and_cache() -> Any:
    """One step with two teachers; and the cache of another run, in which nobody asks twice."""
    teachers = [teacher(1), teacher(2)]
    module = student(teachers, distillation=AKD(0.7))
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, devices=2, strategy="ddp")
    trainer.fit(module, DataLoader(stripes(32), batch_size=16))
    wrapped: Any = trainer.strategy.model
    parameters = sum(parameter.numel() for parameter in wrapped.parameters())
    own = sum(parameter.numel() for parameter in module.net.parameters())
    stepped = {key: value.detach().clone() for key, value in module.net.state_dict().items()}
    (metrics,) = trainer.test(module, loader(41, seed=2), verbose=False)
    results = []
    for cache in (None, "cache"):
        asked = Counting(teacher()).eval()
        cached = student(asked, distillation=ARD(), cache=cache)
        torch.manual_seed(3)
        trainer = quiet_trainer(max_epochs=3, devices=2, strategy="ddp", use_distributed_sampler=True)
        trainer.fit(cached, DataLoader(Indexed(64), batch_size=16, shuffle=True))
        results.append(({key: value.detach() for key, value in cached.net.state_dict().items()}, asked.asked))
    trainer = quiet_trainer(max_epochs=1, devices=2, strategy="ddp")
    with pytest.raises(ValueError, match=r"`cache`='cache' is of other teachers"):  # on both, or one would wait
        trainer.fit(student(teacher(5), distillation=ARD(), cache="cache"), DataLoader(Indexed(64), batch_size=16))
    return stepped, metrics, parameters == own, results


def test_two_ranks_do_what_one_does() -> None:
    first, second = run_ranks(step_and_cache, 2)
    assert_identical(first[:2], second[:2])
    assert first[2]  # DDP synchronizes nothing of the teachers
    net = small_net().eval()
    x, y = stripes(32).tensors
    x_adv = pgd(net, x, y, eps=0.1, steps=3, random_start=False)
    with torch.no_grad():
        log_teacher = torch.stack([teacher(seed)(x_adv).softmax(1) for seed in (1, 2)]).mean(0).log()
    loss = distillation_loss(net(x_adv), y, log_teacher, teacher_weight=0.7)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    for (name, before), gradient in zip(net.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(first[0][name], (before - 0.1 * gradient).detach())
    net.load_state_dict(first[0])
    x, y = stripes(41, seed=2).tensors  # an odd number: the sampler repeats one
    assert first[1]["test/acc"] == pytest.approx((net(x).argmax(1) == y).float().mean().item())

    (alone, asked), (cached, asked_once) = first[3]
    assert asked == 96  # a half of the data in each of three epochs
    assert asked_once == second[3][1][1] == 32  # and in the first one only, when both have written what they met
    for one in (second[3][0][0], cached, second[3][1][0]):
        assert_identical(one, alone)
    # One process goes on with what two have written.
    again = Counting(teacher()).eval()
    quiet_trainer(max_epochs=1).fit(student(again, distillation=ARD(), cache="cache"), DataLoader(Indexed(64), 16))
    assert again.asked == 16  # one batch, to compare

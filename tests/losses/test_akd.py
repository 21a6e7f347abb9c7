from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.attacks import FGSM, PGD, Attack
from pl_robust.losses import AKD, Progress, distillation_loss
from tests.losses.distillation_toys import (
    FIRST,
    Asked,
    ascend,
    batch,
    nobody,
    norm_net,
    smooth_net,
    softmax,
    some_logits,
)

Y = torch.tensor([0, 1, 2, 3, 4, 0])
Objective = Literal["label", "mixture", "teacher"]


def in_numpy(logits: Tensor, teacher: Tensor, weight: float, temperature: float) -> float:
    hard = -np.log(softmax(logits)[np.arange(6), Y])
    soft = -(softmax(teacher, temperature) * np.log(softmax(logits, temperature))).sum(1)
    return float(((1 - weight) * hard + weight * temperature**2 * soft).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_those_on_paper(weight: float, temperature: float) -> None:
    """The gradient: (1 - w) (p - onehot) + w tau (p^tau - p_T^tau), over B."""
    logits, teacher, *_ = some_logits()
    log_teacher = F.log_softmax(teacher / temperature, dim=1).detach()
    ours = distillation_loss(logits, Y, log_teacher, teacher_weight=weight, temperature=temperature)
    assert ours.item() == pytest.approx(in_numpy(logits, teacher, weight, temperature), rel=1e-12)
    (gradient,) = torch.autograd.grad(ours, logits)
    hard = softmax(logits) - np.eye(5)[Y]
    soft = softmax(logits, temperature) - softmax(teacher, temperature)
    np.testing.assert_allclose(gradient, ((1 - weight) * hard + weight * temperature * soft) / 6, rtol=1e-9)


def test_at_temperature_1_it_is_the_cross_entropy_to_the_mixture() -> None:
    logits, teacher, *_ = some_logits()
    mixture = 0.7 * F.one_hot(Y, 5) + 0.3 * teacher.softmax(1).detach()
    ours = distillation_loss(logits, Y, F.log_softmax(teacher, dim=1).detach(), teacher_weight=0.3)
    torch.testing.assert_close(ours, F.cross_entropy(logits, mixture))
    (gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - mixture) / 6)


def test_the_teachers_entropy_is_part_of_the_value() -> None:
    """A fair coin that is imitated perfectly still costs log 2, times weight and temperature squared."""
    coin = torch.zeros(1, 2)
    ours = distillation_loss(coin, Y[:1], coin.log_softmax(1), teacher_weight=1.0, temperature=3.0)
    assert ours.item() == pytest.approx(9 * math.log(2))


@pytest.mark.parametrize("objective", ["label", "mixture", "teacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_weight_it_is_adversarial_training_and_asks_nobody(objective: Objective, dtype: torch.dtype) -> None:
    """Bit for bit, running statistics and gradients as well; also where a schedule has come to 0."""
    results = []
    x, y = batch(dtype)
    akd = AKD(0.0, attack_objective=objective, temperature=4.0, start_weight=0.5)
    for ours in (True, False):
        net = norm_net()[0].to(dtype)
        attack = PGD(0.1, steps=2)
        torch.manual_seed(5)
        if ours:
            loss, logits = akd(net, nobody, attack, x, y, progress=Progress(9, 10))
        else:
            logits = net(attack(net, x, y))
            loss = F.cross_entropy(logits, y)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        results.append([loss, logits, torch.rand(1), *gradients, *net.buffers()])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("teacher_input", ["adversarial", "clean"])
@pytest.mark.parametrize("objective", ["label", "mixture", "teacher"])
def test_what_the_attack_ascends_and_what_the_teacher_is_asked(
    objective: Objective, teacher_input: Literal["adversarial", "clean"]
) -> None:
    """Pgd written out from the same start, against a teacher that holds other classes for right."""
    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    akd = AKD(0.6, teacher_input=teacher_input, attack_objective=objective, temperature=2.0)
    torch.manual_seed(5)
    loss, logits_adv = akd(net, teacher, PGD(0.2, steps=4), x, y, progress=FIRST)
    questions = {"clean": [(2.0, True)], "adversarial": [(2.0, True), (2.0, False)]}[teacher_input]
    assert teacher.asked == (questions[-1:] if objective == "label" else questions)  # none of them twice
    assert akd.clean_teacher == all(clean for _, clean in teacher.asked)

    at_x = F.softmax(teacher.net(x) / 2, dim=1).detach()

    def soft(logits: Tensor) -> Tensor:
        return -(at_x * F.log_softmax(logits / 2, dim=1)).sum()

    objectives = {
        "label": lambda logits: F.cross_entropy(logits, y, reduction="sum"),
        "mixture": lambda logits: 0.4 * F.cross_entropy(logits, y, reduction="sum") + 0.6 * 4 * soft(logits),
        "teacher": soft,
    }
    results = {}
    for name, written_out in objectives.items():
        torch.manual_seed(5)
        results[name] = ascend(net, x, written_out, eps=0.2, steps=4)
    x_adv = results[objective]
    assert all(not torch.equal(x_adv, other) for name, other in results.items() if name != objective)
    torch.testing.assert_close(logits_adv, net(x_adv))
    answers = F.log_softmax(teacher.net(x if teacher_input == "clean" else x_adv) / 2, dim=1)
    torch.testing.assert_close(
        loss, distillation_loss(net(x_adv), y, answers.detach(), teacher_weight=0.6, temperature=2.0)
    )
    assert torch.equal(teacher.questions[0][0], x) or objective == "label"


def test_the_mixture_goes_with_attacks_that_pick_samples() -> None:
    """Restarts and early stopping ask for the losses of some rows; each must keep its own label and teacher."""
    kept: dict[str, Any] = {}

    class Keep(FGSM):
        def __call__(self, model, x, y, *, loss=None, targets=None, generator=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            kept.update(loss=loss, targets=targets)
            return x

    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    AKD(0.6, attack_objective="mixture")(net, teacher, Keep(0.1), x, y, progress=FIRST)
    rows = torch.tensor([4, 1, 1])
    losses = kept["loss"](net(x)[rows], kept["targets"][rows])
    mixture = 0.4 * F.one_hot(y, 5) + 0.6 * teacher.net(x).softmax(1)
    torch.testing.assert_close(losses, F.cross_entropy(net(x), mixture, reduction="none")[rows])
    attack: Attack = PGD(0.2, steps=2, restarts=2, early_stop=True)
    loss, _ = AKD(0.6, attack_objective="mixture")(net, teacher, attack, x, y, progress=FIRST)
    assert loss.isfinite()


def test_a_student_has_nothing_to_learn_from_its_copy() -> None:
    net, (x, y) = smooth_net(), batch()
    teacher = Asked(copy.deepcopy(net))
    loss, _ = AKD(1.0)(net, teacher, PGD(0.2, steps=2), x, y, progress=FIRST)
    for gradient in torch.autograd.grad(loss, list(net.parameters())):
        assert gradient.abs().max() < 1e-15
    loss, _ = AKD(1.0, teacher_input="clean")(net, teacher, PGD(0.2, steps=2), x, y, progress=FIRST)
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(loss, list(net.parameters()))) > 1e-3


def test_the_weight_goes_linearly_from_the_first_epoch_to_the_last() -> None:
    rising, falling = AKD(0.7, start_weight="1/10"), AKD(0.0, start_weight=1.0)
    assert [rising.weight(Progress(epoch, 4)) for epoch in range(4)] == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert falling.weight(Progress(0, 9)) == 1
    assert falling.weight(Progress(8, 9)) == 0  # exactly: then nobody is asked
    assert rising.weight(Progress(0, 1)) == 0.1
    assert AKD(0.7).weight(Progress(5)) == 0.7
    with pytest.raises(ValueError, match=r"`start_weight`=0.1 changes .* not known: set max_epochs of the Trainer"):
        rising(smooth_net(), nobody, PGD(0.1), *batch(), progress=Progress(0))


def test_the_weight_of_the_epoch_is_the_one_in_the_loss() -> None:
    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    loss, logits = AKD(1.0, start_weight=0.0)(net, teacher, PGD(0.0, steps=1), x, y, progress=Progress(3, 5))
    mixture = 0.25 * F.one_hot(y, 5) + 0.75 * teacher.net(x).softmax(1).detach()
    torch.testing.assert_close(loss, F.cross_entropy(logits, mixture))

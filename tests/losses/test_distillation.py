from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import PGD, Attack
from pl_robust.losses import (
    AKD,
    ARD,
    IAD,
    RSLAD,
    Distillation,
    Progress,
    Teacher,
    ard_loss,
    distillation_loss,
    iad_loss,
    rslad_loss,
)
from tests.losses.distillation_toys import FIRST, Asked, batch, norm_net, smooth_net, some_logits


class CleanOnly(Distillation):
    """A user's own: cross-entropy to the teacher's answers, on clean inputs."""

    @property
    def clean_teacher(self) -> bool:
        return True

    def __call__(
        self, net: nn.Module, teacher: Teacher, attack: Attack, x: Tensor, y: Tensor, *, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        logits = net(x)
        return F.cross_entropy(logits, teacher(x, clean=True).exp()), logits


def test_a_distillation_of_ones_own() -> None:
    net, teacher, (x, y) = smooth_net(), Asked(), batch()
    loss, logits = CleanOnly()(net, teacher, PGD(0.1), x, y, progress=FIRST)
    assert teacher.asked == [(1.0, True)]
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - teacher.net(x).softmax(1)) / len(y))
    CleanOnly().check(PGD(0.1))  # nothing to ask by itself


def test_it_shows_its_parameters() -> None:
    assert repr(IAD("1/2", 3)) == "IAD(beta=0.5, start_epoch=3, temperature=1.0)"
    assert repr(ARD()) == "ARD(alpha=1.0, temperature=30.0, reduction='batch_and_classes')"


class InFloat32(nn.Module):
    """A network whose logits are cast to float32 before anybody sees them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.float()


@pytest.mark.parametrize(
    "distillation", [AKD(attack_objective="mixture"), ARD(0.5), RSLAD(), IAD(start_epoch=0)], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_losses_are_computed_in_float32(distillation: Distillation, dtype: torch.dtype) -> None:
    """Attack and loss; of one sample, too."""
    net = norm_net()[0].eval().to(dtype)
    x, y = (tensor[:1] for tensor in batch(dtype))
    teacher = Asked(InFloat32(nn.Sequential(nn.Flatten(), nn.Linear(32, 5)).to(dtype)))
    results = []
    for student in (net, InFloat32(net)):
        torch.manual_seed(5)
        results.append(distillation(student, teacher, PGD(0.2, steps=3), x, y, progress=FIRST))
    (loss, logits_adv), (expected, _) = results
    assert (loss.dtype, logits_adv.dtype) == (torch.float32, dtype)
    assert torch.equal(loss, expected)


def test_a_teacher_that_rules_classes_out_brings_no_nan() -> None:
    """Probabilities of exactly 0, as a stored answer in half precision may have them; in pencil, KL is log 1 / p(y)."""
    logits, logits_adv, *_ = some_logits()
    y = torch.arange(6) % 5
    certain = torch.full((6, 5), -torch.inf, dtype=torch.float64).scatter(1, y[:, None], 0.0)
    hard, hard_adv = F.cross_entropy(logits, y), F.cross_entropy(logits_adv, y)
    others = torch.full((6, 5), -torch.inf, dtype=torch.float64).scatter(1, (y[:, None] + 1) % 5, 0.0)
    losses = {
        "akd": (distillation_loss(logits_adv, y, certain), hard_adv),
        "ard": (ard_loss(logits, logits_adv, y, certain, temperature=1), hard_adv / 5),
        "rslad": (rslad_loss(logits, logits_adv, certain), (5 * hard_adv + hard) / 30),
        "iad, trusted": (iad_loss(logits, logits_adv, y, certain, certain), hard_adv),
        "iad, trusted in all": (iad_loss(logits, logits_adv, y, certain, others, beta=0), hard_adv),
        "iad, not": (
            iad_loss(logits, logits_adv, y, certain, others, beta=2) - hard_adv,
            iad_loss(logits, logits_adv, y, certain, others, beta=9) - hard_adv,
        ),
    }
    for name, (ours, expected) in losses.items():
        assert ours.item() == pytest.approx(expected.item(), rel=1e-12), name
        assert torch.autograd.grad(ours, logits_adv, retain_graph=True)[0].isfinite().all()


LOGITS = torch.zeros(6, 5)
Y = torch.arange(6) % 5
TEACHER = LOGITS.log_softmax(1)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: distillation_loss(LOGITS, Y, TEACHER[:, :4]),
        r"as many classes as the student, \[6, 5\], got \[6, 4\]",
    ),
    (lambda: distillation_loss(LOGITS, Y, TEACHER[:1]), r"as many samples .*\[6, 5\], got \[1, 5\]"),
    (lambda: distillation_loss(LOGITS, Y, TEACHER.exp()), r"neither logits nor probabilities.* got 6\.1"),
    (lambda: distillation_loss(LOGITS, Y, LOGITS), r"sum\(exp\(\.\)\) over the classes must be 1, got 5"),
    (lambda: distillation_loss(LOGITS, Y, TEACHER * torch.nan), r"must be log-probabilities.* got nan"),
    (
        lambda: distillation_loss(LOGITS, Y[:2], TEACHER),
        r"`y` must be labels, int64 \[6\], got torch.int64 \[2\]",
    ),
    (
        lambda: distillation_loss(LOGITS, TEACHER.exp(), TEACHER),
        r"`y` must be labels, int64 \[6\], got torch.float32 \[6, 5\]",
    ),
    (
        lambda: ard_loss(LOGITS[0], LOGITS, Y, TEACHER),
        r"logits must have one shape \[B, K\], got \[\[5\], \[6, 5\]\]",
    ),
    (lambda: rslad_loss(LOGITS, LOGITS[:1], TEACHER), r"one shape \[B, K\], got \[\[6, 5\], \[1, 5\]\]"),
    (lambda: iad_loss(LOGITS, LOGITS, Y, TEACHER, LOGITS), r"must be log-probabilities.* got 5"),
    (lambda: distillation_loss(LOGITS, Y, TEACHER, teacher_weight=1.5), "`teacher_weight` must be between 0 and 1"),
    (
        lambda: distillation_loss(LOGITS, Y, TEACHER, temperature=0),
        "`temperature` must be finite and above 0, got 0",
    ),
    (lambda: AKD(-0.1), "`teacher_weight` must be between 0 and 1, got -0.1"),
    (lambda: AKD("half"), "`teacher_weight` must be a number or a fraction .*got 'half'"),
    (lambda: AKD(float("nan")), "`teacher_weight` must be between 0 and 1, got nan"),
    (lambda: AKD(start_weight=2), "`start_weight` must be between 0 and 1, got 2"),
    (lambda: AKD(temperature=-1), "`temperature` must be finite and above 0, got -1"),
    (
        lambda: AKD(teacher_input="noisy"),  # type: ignore[arg-type]
        r"`teacher_input` must be one of \('adversarial', 'clean'\), got 'noisy'",
    ),
    (
        lambda: AKD(attack_objective="ce"),  # type: ignore[arg-type]
        r"`attack_objective` must be one of \('label', 'mixture', 'teacher'\)",
    ),
    (lambda: ARD(1.1), "`alpha` must be between 0 and 1, got 1.1"),
    (
        lambda: ARD(reduction="mean"),  # type: ignore[arg-type]
        r"`reduction` must be one of \('batch', 'batch_and_classes'\), got 'mean'",
    ),
    (lambda: RSLAD(clean_weight=-1), "`clean_weight` must be finite and at least 0, got -1"),
    (lambda: RSLAD("inf"), "`adversarial_weight` must be finite and at least 0, got 'inf'"),
    (
        lambda: IAD(start_epoch=1.5),  # type: ignore[arg-type]
        "`start_epoch` must be an integer, got 1.5",
    ),
    (lambda: IAD(start_epoch=-1), "`start_epoch` must be at least 0, got -1"),
    (lambda: IAD(beta=True), "`beta` must be a number or a fraction .*got True"),
]


@pytest.mark.parametrize(
    "distillation",
    [AKD(attack_objective="mixture"), AKD(attack_objective="teacher"), ARD(), RSLAD(), IAD()],
    ids=repr,
)
def test_a_teacher_of_another_class_count_is_named_before_it_is_broadcast(distillation: Distillation) -> None:
    """One class would go with any number of them, in the attack as well as in the loss."""
    for classes in (1, 4):
        teacher = Asked(nn.Sequential(nn.Flatten(), nn.Linear(32, classes)).double())
        with pytest.raises(ValueError, match=rf"as many classes as the student, \[6, 5\], got \[6, {classes}\]"):
            distillation(smooth_net(), teacher, PGD(0.1), *batch(), progress=FIRST)


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_makes_no_sense_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()

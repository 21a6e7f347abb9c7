from __future__ import annotations

from typing import Any

import pytest
import torch

from pl_robust.attacks import FGSM, NFGSM, PGD, Attack
from pl_robust.attacks._masking import beats_fgsm, masking_symptom

MEAN_STD = ([0.5, 0.4], [0.2, 0.3])


@pytest.mark.parametrize(
    ("attack", "fgsm"),
    [
        (PGD(0.1), FGSM(0.1)),
        (PGD(0.1, bounds=(0, 1)), FGSM(0.1)),
        (PGD(0.1, bounds=[0.0, 1.0]), FGSM(0.1)),  # type: ignore[arg-type]  # as YAML gives it
        (PGD(0.1, bounds=None), FGSM(0.1, bounds=None)),
        (PGD([0.25] * 3), FGSM(0.25)),
        (PGD(0.1, normalization=MEAN_STD), FGSM(0.1, normalization=(torch.tensor(MEAN_STD[0]), (0.2, 0.3)))),  # type: ignore[arg-type]
        (PGD(0.1, steps=19, step_size=2 * 0.1 / 19), FGSM(0.1)),
        (PGD(0.1, steps=4, step_size=0.025, random_start=False), FGSM(0.1)),
    ],
)
def test_a_pgd_in_the_same_ball_beats_fgsm(attack: Attack, fgsm: Attack) -> None:
    assert beats_fgsm(attack, fgsm.ball, fgsm.normalization)


@pytest.mark.parametrize(
    "attack",
    [
        NFGSM(0.1),
        PGD(0.09),
        PGD(0.1, norm="l2"),
        PGD(0.1, bounds=None),
        PGD(0.1, bounds=(-1, 1)),
        PGD([0.1, 0.1, 0.0999]),
        PGD(0.1, normalization=MEAN_STD),
        PGD(0.1, steps=4, step_size=0.025),
    ],
)
def test_others_need_not(attack: Attack) -> None:
    assert not beats_fgsm(attack, FGSM(0.1).ball, None)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"zero_gradients": 0.0, "acc_fgsm": 0.5, "acc_pgd": 0.51}, None),  # PGD, too, misses a few
        ({"zero_gradients": 0.0, "acc_fgsm": 0.5, "acc_pgd": 0.3}, None),
        ({"zero_gradients": 0.04, "acc_fgsm": None, "acc_pgd": 0.3}, None),
        ({"zero_gradients": 0.0, "acc_fgsm": 0.2, "acc_pgd": 0.9}, "FGSM is stronger than PGD (accuracy 20.0% against"),
        ({"zero_gradients": 0.5, "acc_fgsm": None, "acc_pgd": None}, "50% of the input gradients are exactly zero"),
    ],
)
def test_the_symptom_is_named(measured: dict[str, Any], said: str | None) -> None:
    symptom = masking_symptom(**measured, samples=1000)
    assert symptom is None if said is None else said in str(symptom)


def test_few_samples_prove_nothing() -> None:
    assert masking_symptom(zero_gradients=0.0, acc_fgsm=0.2, acc_pgd=0.9, samples=10) is None

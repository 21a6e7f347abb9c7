"""Signs that gradients hide weaknesses instead of finding them (Athalye, Carlini, Wagner 2018, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pl_robust.attacks._target import Normalization
from pl_robust.attacks._threat_model import ThreatModel
from pl_robust.attacks.attack import Attack
from pl_robust.attacks.pgd import PGD

_MANY = 0.05
"""Share of zero input gradients that no healthy network shows."""

_CLEARLY = 0.02
"""By so much accuracy under PGD must exceed that under FGSM, and by 10 samples: PGD, too, misses a few."""


def beats_fgsm(attack: Attack, ball: ThreatModel, normalization: Normalization | None) -> bool:
    """Tell whether an attack is a PGD that FGSM in a ball can beat only on a network whose gradients mislead.

    It must search the same ball, with steps that can cross it from one end to the other.
    """
    if not isinstance(attack, PGD):
        return False
    is_same = (
        attack.norm == ball.norm
        and _are_equal(attack.eps, ball.eps)
        and _are_equal(attack.bounds, ball.bounds)
        and _are_equal(attack.normalization, normalization)
    )
    if attack.step_size is None or not is_same:
        return is_same  # by default a step is 2.5 eps / steps long
    across = (2 if attack.random_start else 1) * _numbers(attack.eps)
    return bool((attack.steps * _numbers(attack.step_size) >= across * (1 - 1e-6)).all())


def _are_equal(one: Any, other: Any) -> bool:
    """Compare numbers or nests of them, whatever holds them; None equals None only."""
    if one is None or other is None:
        return one is other
    return bool(torch.isclose(_numbers(one), _numbers(other), rtol=1e-6, atol=0).all())


def _numbers(value: Any) -> Tensor:
    parts = [_numbers(part) for part in value] if isinstance(value, tuple | list) else None
    return torch.as_tensor(value, dtype=torch.float64, device="cpu") if parts is None else torch.stack(parts)


def masking_symptom(
    *, zero_gradients: float, acc_fgsm: float | None, acc_pgd: float | None, samples: int
) -> str | None:
    """Say how a network masks its gradients, if it does.

    Args:
        zero_gradients: share of the samples whose input gradient is exactly zero where the attack starts.
        acc_fgsm: accuracy under a single step, in [0, 1]; None if it was not measured.
        acc_pgd: accuracy under PGD in the same ball, in [0, 1]; None if it was not measured.
        samples: number of samples behind these.

    Returns:
        A sentence for a warning, or None.
    """
    symptoms = []
    if zero_gradients > _MANY:
        symptoms.append(
            f"{zero_gradients:.0%} of the input gradients are exactly zero, so that a gradient attack has nowhere to go"
        )
    if acc_fgsm is not None and acc_pgd is not None and acc_pgd - acc_fgsm > max(_CLEARLY, 10 / samples):
        symptoms.append(
            f"FGSM is stronger than PGD (accuracy {acc_fgsm:.1%} against {acc_pgd:.1%}), so that PGD's steps mislead it"
        )
    if not symptoms:
        return None
    return (
        f"Masked gradients: {' and '.join(symptoms)}. The robust accuracies are not to be trusted: look for saturated "
        "logits, rounding or randomness in the network, and evaluate with an attack that needs no gradient, such as "
        "AutoAttack's Square"
    )

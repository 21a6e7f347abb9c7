"""Where observers of robustness look: the eps-ball of a sample, given or taken from the module's training attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pl_robust._lightning import LightningModule, MisconfigurationException
from pl_robust.attacks import Attack
from pl_robust.attacks._target import Normalization, check_choices
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius


@dataclass(frozen=True)
class Neighborhood:
    """A ball in input units, and how to come there from what the module takes.

    Args:
        ball: the eps-ball and the box of valid inputs.
        normalization: (mean, std) of data that is normalized before it reaches the module.
    """

    ball: ThreatModel
    normalization: Normalization | None


def given_neighborhood(
    eps: Radius | None, norm: Norm, bounds: tuple[float, float] | None, normalization: Normalization | None
) -> Neighborhood | None:
    """Check an observer's arguments; None if ``eps`` is None, and the training attack is to be asked.

    Raises:
        ValueError: if a value is not allowed, or others are given while ``eps`` is not.
        TypeError: if ``eps`` is of another type.
    """
    check_choices(normalization, "train")
    if eps is not None:
        return Neighborhood(ThreatModel(parse_radius(eps, "eps"), norm, bounds), normalization)
    has_own_box = bounds is None or tuple(bounds) != (0.0, 1.0)
    if norm != "linf" or has_own_box or normalization is not None:
        raise ValueError(
            "with `eps`=None the training attack's `norm`, `bounds` and `normalization` are taken, too: give `eps`, or "
            f"leave them out, got norm={norm!r}, bounds={bounds!r}, normalization={normalization!r}"
        )
    return None


def training_neighborhood(module: LightningModule, observer: str) -> Neighborhood:
    """Take ball and normalization of the module's training attack.

    Raises:
        MisconfigurationException: if the module holds none.
    """
    attack = getattr(module, "attack", None)
    if not isinstance(attack, Attack):
        raise MisconfigurationException(
            f"{observer} with `eps`=None takes the ball of the module's attribute `attack`, and "
            f"{type(module).__name__} has no attack there: give `eps=`, such as {observer}(eps=8/255)"
        )
    return Neighborhood(attack.ball, attack.normalization)


def plain_eps(neighborhood: Neighborhood | None) -> float | list[float] | None:
    """The radius as a state key shows it; None if it is the training attack's."""
    if neighborhood is None:
        return None
    eps = neighborhood.ball.eps
    return eps.tolist() if isinstance(eps, Tensor) else eps

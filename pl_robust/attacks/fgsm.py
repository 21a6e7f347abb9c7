"""FGSM and RS-FGSM: one signed gradient step, from the image or from a random point of its eps-ball."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, Target, check_choices, under_attack
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius
from pl_robust.attacks.attack import Attack


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    step_size: Radius | None = None,
    random_start: bool = False,
    norm: Norm = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    normalization: Normalization | None = None,
    loss: Loss | None = None,
    batch_norm: BatchNormMode = "train",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    r"""Fast gradient sign method (Goodfellow et al. 2015, eq. 4.1), with a random start RS-FGSM (Wong et al. 2020).

    :math:`x_{adv} = \Pi_{\epsilon}\big(x + \eta + \alpha\,\mathrm{sign}\nabla_x \ell(f(x + \eta), y)\big)`, with
    :math:`\eta = 0` or uniform in the ball; for l2 the gradient over its norm stands for the sign.

    Args:
        model: callable that gives logits [B, K].
        x: clean inputs, floating point [B, ...], images [B, C, H, W] in ``bounds``.
        y: labels, int64 [B].
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        step_size: length of the step; None means eps (the CO papers' code; Wong et al. take 1.25 eps).
        random_start: start from a uniform point of the eps-ball, then clip to the ball: RS-FGSM.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, or None.
        normalization: (mean, std) per channel of already normalized data; eps and bounds speak of it before.
        loss: (logits, labels) -> losses [B] or a scalar; None means cross-entropy.
        batch_norm: see ``Attack``.
        generator: source of the random start; None takes torch's global one.
        check: whether to check values (NaN, range, labels), which waits for an accelerator.

    Returns:
        Perturbed inputs: shape, dtype and device of ``x``, detached.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a value that is not allowed, wrong shapes, NaN, values outside the bounds, labels out of range.

    Example:
        >>> import torch
        >>> from pl_robust.attacks import fgsm
        >>> weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> fgsm(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]), eps=0.1)
        tensor([[0.4000, 0.6000]])
    """
    check_choices(normalization, batch_norm)
    ball = ThreatModel(parse_radius(eps, "eps"), norm, bounds)
    step = ball.eps if step_size is None else parse_radius(step_size, "step_size")
    with under_attack(
        model, x, y, bounds=bounds, loss=loss, normalization=normalization, batch_norm=batch_norm, check=check
    ) as target:
        return target.to_input(_step(target, ball, step, random_start, generator))


def _step(
    target: Target, ball: ThreatModel, step: float | Tensor, random_start: bool, generator: torch.Generator | None
) -> Tensor:
    start = ball.clip(target.x + ball.random(target.x, generator=generator)) if random_start else target.x
    gradient, _, _ = target.gradient(start)
    return ball.project(ball.ascend(start, gradient, step), target.x)


class FGSM(Attack):
    """Single-step attack: FGSM, or RS-FGSM with ``random_start=True``. See ``fgsm`` for the method.

    Args:
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        step_size: length of the step; None means eps.
        random_start: start from a uniform point of the eps-ball: RS-FGSM.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, or None.
        normalization: (mean, std) per channel of already normalized data.
        loss: (logits, labels) -> losses [B] or a scalar; None means cross-entropy.
        batch_norm: ``"train"``, ``"eval"`` or ``"batch_stats"``: see ``Attack``.
    """

    def __init__(
        self,
        eps: Radius,
        *,
        step_size: Radius | None = None,
        random_start: bool = False,
        norm: Norm = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        normalization: Normalization | None = None,
        loss: Loss | None = None,
        batch_norm: BatchNormMode = "train",
    ) -> None:
        super().__init__(
            eps,
            step_size=step_size,
            norm=norm,
            bounds=bounds,
            normalization=normalization,
            loss=loss,
            batch_norm=batch_norm,
        )
        self.random_start = random_start

    def _perturb(self, target: Target, generator: torch.Generator | None) -> Tensor:
        step = self.eps if self.step_size is None else self.step_size
        return _step(target, self.ball, step, self.random_start, generator)

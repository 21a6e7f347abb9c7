"""How far the loss in the eps-ball is from its linear approximation at the centre.

Qin, Martens, Gowal, Krishnan, Dvijotham, Fawzi, De, Stanforth, Kohli, "Adversarial robustness through local
linearization", NeurIPS 2019, https://arxiv.org/abs/1907.02610.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pl_robust._number import check_count
from pl_robust.attacks._target import Loss, Model, Normalization, Target, check_choices, under_attack
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius


def local_linearity_error(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    steps: int = 5,
    norm: Norm = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    normalization: Normalization | None = None,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    r"""The local linearity measure of each sample (Qin et al. 2019).

    :math:`\gamma(\epsilon, x) = \max_{\|\delta\| \le \epsilon} |\ell(x + \delta) - \ell(x) - \delta^\top
    \nabla_x \ell(x)|`, maximized by projected gradient ascent from a random point of the ball, with steps of 2.5 eps /
    steps as PGD's; the best of all iterates counts, the start among them, so that this is a bound from below.

    Batch-norm layers in training mode use their running statistics meanwhile: a sample's loss must not change with
    the others' perturbations.

    Args:
        model: callable that gives logits [B, K] and treats samples one by one.
        x: clean inputs, floating point [B, ...], images [B, C, H, W] in ``bounds``.
        y: labels, int64 [B].
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        steps: number of gradient steps.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, which x + delta keeps to, or None.
        normalization: (mean, std) per channel of already normalized data; eps and bounds speak of it before.
        loss: (logits, labels) -> losses [B]; None means cross-entropy.
        generator: source of the random start, on the device of ``x``; None takes torch's global one.
        check: whether to check values (NaN, range, labels), which waits for an accelerator.

    Returns:
        The errors [B] in units of the loss, at least 0 and at least float32, detached. Rounding leaves errors of about
        1e-7 times the loss where there are none.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a value that is not allowed, a loss that reduces, wrong shapes, NaN, values outside the bounds,
            labels out of range.
    """
    check_choices(normalization, "eval")
    check_count(steps, "steps")
    ball = ThreatModel(parse_radius(eps, "eps"), norm, bounds)
    with under_attack(
        model,
        x,
        y,
        bounds=bounds,
        loss=loss,
        normalization=normalization,
        batch_norm="eval" if isinstance(model, nn.Module) else "train",  # a function has no layers to set
        check=check,
    ) as target:
        return _largest_error(target, ball, steps, generator)


def _largest_error(target: Target, ball: ThreatModel, steps: int, generator: torch.Generator | None) -> Tensor:
    slope, _, centre = target.gradient(target.x)
    if centre.dim() == 0:
        raise ValueError(
            "`loss` must give one value per sample [B] (reduction='none'), because each sample has an error of its "
            "own; got a scalar"
        )
    largest = torch.zeros_like(centre, dtype=target.x.dtype)
    x_near = ball.clip(target.x + ball.random(target.x, generator=generator))
    for count in range(steps + 1):
        if count < steps:
            gradient, _, losses = target.gradient(x_near)
        else:
            with torch.no_grad():
                _, losses = target.evaluate(x_near)
        error = losses - centre - ((x_near - target.x) * slope).flatten(1).sum(1)
        # NaN, of a network that has diverged, stays.
        largest = torch.maximum(largest, error.abs().to(largest))
        if count < steps:
            uphill = error.sign().view(-1, *[1] * (slope.dim() - 1)) * (gradient - slope)
            x_near = ball.project(ball.ascend(x_near, uphill, 2.5 * ball.eps / steps), target.x)
    return largest

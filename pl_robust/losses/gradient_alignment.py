"""GradAlign: input gradients that agree all over the eps-ball leave single-step attacks nothing to be fooled by.

Andriushchenko & Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020,
https://arxiv.org/abs/2007.02617.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust._number import parse_number
from pl_robust.attacks import Attack
from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, check_choices, under_attack
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius
from pl_robust.losses._double_backward import twice_differentiable
from pl_robust.losses.regularizer import Regularizer

_LARGEST_PUBLISHED = 16 / 255


def gradient_alignment(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    start_gradient: Tensor | None = None,
    norm: Norm = "linf",
    normalization: Normalization | None = None,
    loss: Loss | None = None,
    batch_norm: BatchNormMode = "train",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    r"""Misalignment of the input gradients in the eps-ball (Andriushchenko & Flammarion 2020, eq. 5).

    :math:`1 - \frac{1}{B}\sum_i \cos(g_i, \nabla_x \ell(f(x_i + \eta_i), y_i))` with :math:`\eta` uniform in the ball,
    not clipped to the box, and :math:`g` a constant, as in the authors' code: only the gradient at
    :math:`x + \eta` is differentiated once more. Samples with a gradient whose norm vanishes (in float32, below about
    1e-19) have no direction and are left out.

    Args:
        model: callable that gives logits [B, K], twice differentiable almost everywhere.
        x: clean inputs, floating point [B, ...], images [B, C, H, W].
        y: labels, int64 [B].
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        start_gradient: g, input gradients in the shape of ``x``; None means those at ``x``, which cost one more forward
            and backward. ``Attack.with_start_gradient`` gives those that an attack has taken anyway.
        norm: ``"linf"`` or ``"l2"``, the ball of the noise.
        normalization: (mean, std) per channel of already normalized data; eps then speaks of it before.
        loss: (logits, labels) -> losses [B] or a scalar sum; None means cross-entropy.
        batch_norm: as of an attack, see ``Attack``.
        generator: source of the noise; None takes torch's global one.
        check: whether to check values (NaN, labels), which waits for an accelerator.

    Returns:
        A scalar in [0, 2], differentiable in the model's parameters; 0 if no sample has both gradients, NaN if one of
        them is not finite.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a value that is not allowed, wrong shapes, NaN, or labels out of range.
    """
    check_choices(normalization, batch_norm)
    ball = ThreatModel(parse_radius(eps, "eps"), norm, bounds=None)
    if start_gradient is not None:
        _check_start_gradient(start_gradient, x)
    with under_attack(
        model, x, y, bounds=None, loss=loss, normalization=normalization, batch_norm=batch_norm, check=check
    ) as target:
        if start_gradient is None:
            start_gradient, _, _ = target.gradient(target.x)
        near = target.x + ball.random(target.x, generator=generator)
        with twice_differentiable():
            gradient, _, _ = target.gradient(near, create_graph=True)
    # Below this the derivative of a direction, 1 / norm, overflows.
    floor = torch.finfo(gradient.dtype).tiny ** 0.5
    # Not `> floor`: NaN, of a network that has diverged, stays.
    has_norm = ~(gradient.detach().abs().flatten(1).amax(1) <= floor)
    gradient = torch.where(has_norm.view(-1, *[1] * (x.dim() - 1)), gradient, 0.0)
    cosines, defined = gradient_cosine(start_gradient.detach(), gradient)
    # Not by boolean indexing, whose result's size would have to come back from an accelerator.
    return torch.where(defined, 1 - cosines, 0.0).sum() / defined.sum().clamp_min(1)


def _check_start_gradient(gradient: Tensor, x: Tensor) -> None:
    if not isinstance(gradient, Tensor) or not gradient.is_floating_point():
        got = gradient.dtype if isinstance(gradient, Tensor) else type(gradient).__name__
        raise TypeError(f"`start_gradient` must be input gradients, floating point, got {got}")
    if isinstance(x, Tensor) and gradient.shape != x.shape:  # `x` itself is checked later
        raise ValueError(f"`start_gradient` must have the shape of `x`, {list(x.shape)}, got {list(gradient.shape)}")


def gradient_cosine(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine between two input gradients of each sample.

    Args:
        first: gradients [B, ...].
        second: gradients of the same shape.

    Returns:
        Cosines [B], differentiable; and bool [B], false where a gradient is zero and the cosine means nothing.
    """
    first, second = first.flatten(1), second.flatten(1)
    defined = (first != 0).any(1) & (second != 0).any(1)
    return (_unit(first, defined) * _unit(second, defined)).sum(1), defined


def _unit(rows: Tensor, defined: Tensor) -> Tensor:
    rows = torch.where(defined[:, None], rows, 1.0)  # no 0 / 0, neither here nor in the derivative
    # By the largest entry first: the squares of a confident net's gradients underflow.
    return F.normalize(rows / rows.detach().abs().amax(1, keepdim=True), dim=1)


def gradient_alignment_weight(eps: float | str) -> float:
    r"""The weight that the authors' code gives GradAlign on CIFAR-10.

    :math:`\lambda = 0.02 \cdot 10^{255\epsilon / 8}`: 0.2 at eps 8/255.

    Args:
        eps: linf radius for images in [0, 1], at most 16/255; a float or ``"8/255"``.

    Raises:
        TypeError: if ``eps`` is no number.
        ValueError: beyond 16/255, where nothing was published and the exponential runs away.

    Example:
        >>> round(gradient_alignment_weight("8/255"), 6)
        0.2
    """
    eps = parse_number(eps, "eps")
    if not 0 <= eps <= _LARGEST_PUBLISHED * (1 + 1e-6):
        raise ValueError(
            f"the published weight of GradAlign holds for `eps` from 0 to 16/255, got {eps:.4g}: give a `weight`"
        )
    return 0.02 * math.exp(255 * eps * math.log(10) / 8)


class GradAlign(Regularizer):
    r"""Cross-entropy on adversarial examples + weight * ``gradient_alignment``.

    The gradient at the attack's start (at x for FGSM, at x + noise for RS-FGSM and N-FGSM) comes from the attack; the
    second one, at a random point of the ball, uses the attack's eps, norm, normalization, loss and batch-norm mode. A
    training step costs about three times that of FGSM alone. The network may be compiled, its second forward runs
    eagerly; a LightningModule that is compiled as a whole cannot be differentiated twice (torch's AOT autograd).

    Args:
        weight: factor of the regularization; None means ``gradient_alignment_weight`` at the attack's eps.

    Raises:
        ValueError: if ``weight`` is negative or not finite; with an attack, if it is None and the attack's ball is none
            for which a weight was published.
        TypeError: if ``weight`` is no number; at the first batch, if the attack gives no gradient at its start.
    """

    def __init__(self, weight: float | str | None = None) -> None:
        self.weight = None if weight is None else parse_number(weight, "weight")
        if self.weight is not None and not 0 <= self.weight < math.inf:
            raise ValueError(f"`weight` must be finite and at least 0, or None for the published one, got {weight!r}")

    def check(self, attack: Attack) -> None:
        """Refuse a ball for which no weight was published, if that is the one to take."""
        if self.weight is None:
            self._published(attack)

    def __call__(self, net: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cross-entropy and regularization. See ``Regularizer``."""
        weight = self._published(attack) if self.weight is None else self.weight
        x_adv, start_gradient = attack.with_start_gradient(net, x, y)
        if start_gradient is None:
            raise TypeError(
                f"GradAlign compares with the gradient at the attack's start, and {type(attack).__name__} gives none: "
                "take FGSM, NFGSM or PGD, or a subclass that leaves their `__call__` as it is"
            )
        # Before the second derivative's forward: a compiled one would write into running statistics that it saves.
        logits = net(x_adv)
        misalignment = gradient_alignment(
            net,
            x,
            y,
            eps=attack.eps,
            start_gradient=start_gradient,
            norm=attack.norm,
            normalization=attack.normalization,
            loss=attack.loss,
            batch_norm=attack.batch_norm,
            check=False,  # the attack has looked at the batch
        )
        return F.cross_entropy(logits, y) + weight * misalignment, logits

    def _published(self, attack: Attack) -> float:
        if isinstance(attack.eps, Tensor) or attack.norm != "linf":
            raise ValueError(
                "the published weight of GradAlign holds for norm='linf' with one eps for all channels, got "
                f"norm={attack.norm!r}, eps={attack.eps!r}: give GradAlign a `weight`"
            )
        return gradient_alignment_weight(attack.eps)

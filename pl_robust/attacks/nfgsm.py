"""N-FGSM: a single step from strong noise, not clipped to the eps-ball afterwards."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, Target, check_choices, under_attack
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius
from pl_robust.attacks.attack import Attack


def nfgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    k: float = 2.0,
    step_size: Radius | None = None,
    norm: Norm = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    normalization: Normalization | None = None,
    loss: Loss | None = None,
    batch_norm: BatchNormMode = "train",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    r"""Noise-FGSM (de Jorge et al. 2022, "Make some noise", algorithm 1).

    :math:`x_{adv} = x + \eta + \alpha\,\mathrm{sign}\nabla_x \ell(f(x + \eta), y)` with :math:`\eta` uniform in the
    ball of radius :math:`k\epsilon`. There is no clipping to the eps-ball, so the perturbation reaches up to
    :math:`k\epsilon + \alpha`; noise and result are clipped to ``bounds``, as in the released code.

    Args:
        model: callable that gives logits [B, K].
        x: clean inputs, floating point [B, ...], images [B, C, H, W] in ``bounds``.
        y: labels, int64 [B].
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        k: noise radius over eps; the paper's default is 2, 3 for SVHN at eps 12/255.
        step_size: length of the step; None means eps.
        norm: ``"linf"`` as in the paper, or ``"l2"``.
        bounds: lowest and highest valid input value, or None.
        normalization: (mean, std) per channel of already normalized data; eps and bounds speak of it before.
        loss: (logits, labels) -> losses [B] or a scalar; None means cross-entropy.
        batch_norm: see ``Attack``.
        generator: source of the noise; None takes torch's global one.
        check: whether to check values (NaN, range, labels), which waits for an accelerator.

    Returns:
        Perturbed inputs: shape, dtype and device of ``x``, detached.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a value that is not allowed, wrong shapes, NaN, values outside the bounds, labels out of range.
    """
    check_choices(normalization, batch_norm)
    _check_k(k)
    ball = ThreatModel(parse_radius(eps, "eps"), norm, bounds)
    step = ball.eps if step_size is None else parse_radius(step_size, "step_size")
    with under_attack(
        model, x, y, bounds=bounds, loss=loss, normalization=normalization, batch_norm=batch_norm, check=check
    ) as target:
        return target.to_input(_step(target, ball, step, k, generator))


def _step(
    target: Target, ball: ThreatModel, step: float | Tensor, k: float, generator: torch.Generator | None
) -> Tensor:
    start = ball.clip(target.x + ball.random(target.x, scale=k, generator=generator))
    gradient, _, _ = target.gradient(start)
    return ball.clip(ball.ascend(start, gradient, step))


def _check_k(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, Real) or not 0 <= float(k) < float("inf"):
        raise ValueError(f"`k` (noise radius over eps) must be finite and at least 0, got {k!r}")


class NFGSM(Attack):
    """Single-step attack from strong noise, the paper's cure for catastrophic overfitting. See ``nfgsm``.

    Args:
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        k: noise radius over eps.
        step_size: length of the step; None means eps.
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
        k: float = 2.0,
        step_size: Radius | None = None,
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
        _check_k(k)
        self.k = k

    def _perturb(self, target: Target, generator: torch.Generator | None) -> Tensor:
        step = self.eps if self.step_size is None else self.step_size
        return _step(target, self.ball, step, self.k, generator)

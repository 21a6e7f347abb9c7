"""PGD: projected gradient ascent on the loss, with random restarts, the field's standard evaluation attack."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pl_robust._number import check_count
from pl_robust.attacks._target import BatchNormMode, Loss, Model, Normalization, Target, check_choices, under_attack
from pl_robust.attacks._threat_model import Norm, Radius, ThreatModel, parse_radius
from pl_robust.attacks.attack import Attack


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    step_size: Radius | None = None,
    steps: int = 10,
    restarts: int = 1,
    random_start: bool = True,
    early_stop: bool = False,
    norm: Norm = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    normalization: Normalization | None = None,
    loss: Loss | None = None,
    batch_norm: BatchNormMode = "train",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    r"""Projected gradient descent on the negative loss (Madry et al. 2018, eq. 3).

    :math:`x^{t+1} = \Pi_{\epsilon}\big(x^t + \alpha\,\mathrm{sign}\nabla_x \ell(f(x^t), y)\big)`. Plain PGD gives
    the last iterate. With restarts or ``early_stop``, each sample gets the worst iterate seen: a misclassified one, or
    else the one of highest loss: never a higher robust accuracy than the last iterate's. With restarts, ``early_stop``
    only saves work: a sample is left alone from its first misclassified iterate on, so that the robust accuracy is the
    same, on fewer passes. (It holds for models that treat samples one by one, as all do in eval mode; batch-norm in
    training mode mixes them.)

    Args:
        model: callable that gives logits [B, K].
        x: clean inputs, floating point [B, ...], images [B, C, H, W] in ``bounds``.
        y: labels, int64 [B].
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        step_size: length of a step; None means 2.5 eps / steps (Madry et al.), 2/255 for eps 8/255 and 10 steps.
        steps: number of gradient steps.
        restarts: number of random starts.
        random_start: start from a uniform point of the eps-ball.
        early_stop: go on only with samples that are not yet misclassified.
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, or None.
        normalization: (mean, std) per channel of already normalized data; eps and bounds speak of it before.
        loss: (logits, labels) -> losses [B], or a scalar where no worst iterate has to be picked; None means
            cross-entropy.
        batch_norm: see ``Attack``.
        generator: source of the random starts; None takes torch's global one. What is drawn does not depend on
            ``early_stop``.
        check: whether to check values (NaN, range, labels), which waits for an accelerator.

    Returns:
        Perturbed inputs: shape, dtype and device of ``x``, detached.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a value that is not allowed, wrong shapes, NaN, values outside the bounds, labels out of range.

    Example:
        >>> import torch
        >>> from pl_robust.attacks import pgd
        >>> weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> x, y = torch.tensor([[0.5, 0.95]]), torch.tensor([0])  # the box ends at 1
        >>> pgd(lambda x: x @ weight.T, x, y, eps=0.1, steps=4, random_start=False)
        tensor([[0.4000, 1.0000]])
    """
    check_choices(normalization, batch_norm)
    _check_counts(steps, restarts, random_start)
    ball = ThreatModel(parse_radius(eps, "eps"), norm, bounds)
    step = 2.5 * ball.eps / steps if step_size is None else parse_radius(step_size, "step_size")
    with under_attack(
        model, x, y, bounds=bounds, loss=loss, normalization=normalization, batch_norm=batch_norm, check=check
    ) as target:
        return target.to_input(_ascend(target, ball, step, steps, restarts, random_start, early_stop, generator))


def _ascend(
    target: Target,
    ball: ThreatModel,
    step: float | Tensor,
    steps: int,
    restarts: int,
    random_start: bool,
    early_stop: bool,
    generator: torch.Generator | None,
) -> Tensor:
    if restarts > 1 or early_stop:
        return _worst_iterate(target, ball, step, steps, restarts, random_start, early_stop, generator)
    x_adv = _start(target, ball, random_start, generator)
    for _ in range(steps):
        gradient, _, _ = target.gradient(x_adv)
        x_adv = ball.project(ball.ascend(x_adv, gradient, step), target.x)
    return x_adv


def _start(target: Target, ball: ThreatModel, random_start: bool, generator: torch.Generator | None) -> Tensor:
    return ball.clip(target.x + ball.random(target.x, generator=generator)) if random_start else target.x


def _worst_iterate(
    target: Target,
    ball: ThreatModel,
    step: float | Tensor,
    steps: int,
    restarts: int,
    random_start: bool,
    early_stop: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """Per sample the worst iterate of all restarts."""
    worst = target.x.clone()
    worst_loss = torch.full_like(target.y, -torch.inf, dtype=worst.dtype)
    fooled = torch.zeros_like(target.y, dtype=torch.bool)
    for _ in range(restarts):
        # Drawn for all samples also when few are left: the noise of later restarts must not depend on earlier success.
        x_adv = _start(target, ball, random_start, generator)
        rows = (~fooled).nonzero().flatten() if early_stop else torch.arange(len(worst), device=worst.device)
        x_adv = x_adv[rows]
        for count in range(steps + 1):
            if len(rows) == 0:
                break
            if count < steps:
                gradient, logits, losses = target.gradient(x_adv, rows)
            else:
                with torch.no_grad():
                    logits, losses = target.evaluate(x_adv, rows)
            if losses.dim() == 0:
                raise ValueError(
                    "`loss` must give one value per sample [B] (reduction='none') where PGD picks each sample's worst "
                    "iterate, with restarts > 1 or early_stop=True; got a scalar"
                )
            wrong = logits.argmax(1) != target.y[rows]
            worse = (wrong & ~fooled[rows]) | ((wrong == fooled[rows]) & (losses > worst_loss[rows]))
            worst[rows] = torch.where(worse.view(-1, *[1] * (worst.dim() - 1)), x_adv, worst[rows])
            worst_loss[rows] = torch.where(worse, losses.to(worst_loss), worst_loss[rows])
            fooled[rows] |= wrong
            if count == steps:
                break
            if early_stop:
                rows, x_adv, gradient = rows[~wrong], x_adv[~wrong], gradient[~wrong]
            x_adv = ball.project(ball.ascend(x_adv, gradient, step), target.x[rows])
    return worst


def _check_counts(steps: int, restarts: int, random_start: bool) -> None:
    check_count(steps, "steps")
    check_count(restarts, "restarts")
    if restarts > 1 and not random_start:
        raise ValueError(f"`restarts`={restarts} would repeat the same run: set random_start=True, or restarts=1")


class PGD(Attack):
    """Multi-step attack with random restarts. See ``pgd`` for the method.

    Args:
        eps: radius in input units, 8/255 for images in [0, 1]; a float, ``"8/255"``, or one number per channel.
        step_size: length of a step; None means 2.5 eps / steps.
        steps: number of gradient steps.
        restarts: number of random starts.
        random_start: start from a uniform point of the eps-ball.
        early_stop: go on only with samples that are not yet misclassified (``for_evaluation`` switches it on).
        norm: ``"linf"`` or ``"l2"``.
        bounds: lowest and highest valid input value, or None.
        normalization: (mean, std) per channel of already normalized data.
        loss: (logits, labels) -> losses [B], or a scalar where no worst iterate has to be picked.
        batch_norm: ``"train"``, ``"eval"`` or ``"batch_stats"``: see ``Attack``.
    """

    def __init__(
        self,
        eps: Radius,
        *,
        step_size: Radius | None = None,
        steps: int = 10,
        restarts: int = 1,
        random_start: bool = True,
        early_stop: bool = False,
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
        _check_counts(steps, restarts, random_start)
        self.steps = steps
        self.restarts = restarts
        self.random_start = random_start
        self.early_stop = early_stop

    def for_evaluation(self) -> PGD:
        """Give the same attack with ``early_stop=True``."""
        attack = copy.copy(self)
        attack.early_stop = True
        return attack

    def _perturb(self, target: Target, generator: torch.Generator | None) -> Tensor:
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        return _ascend(
            target, self.ball, step, self.steps, self.restarts, self.random_start, self.early_stop, generator
        )

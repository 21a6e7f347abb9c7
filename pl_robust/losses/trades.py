"""TRADES: cross-entropy on clean inputs, and answers that do not change inside the eps-ball.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically principled trade-off between robustness and accuracy", ICML
2019, https://arxiv.org/abs/1901.08573.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust.attacks import Attack
from pl_robust.attacks._target import batch_norm_mode
from pl_robust.losses._soft_labels import check_labels, check_logits, divergence, log_softmax, parse_weight
from pl_robust.losses.regularizer import Regularizer


def trades_loss(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float = 6.0) -> Tensor:
    r"""The TRADES objective (Zhang et al. 2019, eq. 5).

    :math:`\frac{1}{B}\sum_i \ell_{CE}(f(x_i), y_i) + \beta\,\mathrm{KL}(p(x_i) \,\|\, p(x_{adv,i}))`; as in the
    authors' code the divergence is averaged over the batch, not over the classes, and gradients flow through both of
    its sides.

    Args:
        logits: of clean inputs, [B, K].
        logits_adv: of adversarial ones, [B, K].
        y: labels, int64 [B].
        beta: weight of the divergence; the paper's 1 / lambda.

    Returns:
        A scalar; float32 for half precision.

    Raises:
        TypeError: for another type.
        ValueError: if ``beta`` is negative or not finite, shapes do not fit, the batch is empty, or, on the CPU, where
            looking is free, labels are out of range.
    """
    check_logits(logits, logits_adv)
    check_labels(y, logits)
    log_clean = log_softmax(logits)
    return F.nll_loss(log_clean, y) + parse_weight(beta, "beta") * divergence(logits_adv, log_clean).mean()


class TRADES(Regularizer):
    r"""Train on ``trades_loss``, with adversarial examples that maximize its divergence, not the cross-entropy.

    The divergence has its minimum at x, where its gradient is zero: the attack needs a random start. The authors take
    ``PGD(0.031, step_size=0.007, steps=10, batch_norm="eval")`` on CIFAR-10, from a start very close to x (normal noise
    of 0.001); here it is the attack's own. With ``batch_norm="eval"`` the reference is the network in eval mode, too.

    Args:
        beta: weight of the divergence; the paper's 1 / lambda, 6 in its CIFAR-10 table.

    Raises:
        TypeError: if ``beta`` is no number.
        ValueError: if ``beta`` is negative or not finite; with an attack, if it starts at x.
    """

    def __init__(self, beta: float | str = 6.0) -> None:
        self.beta = parse_weight(beta, "beta")

    def check(self, attack: Attack) -> None:
        """Refuse an attack that starts at x."""
        if getattr(attack, "random_start", True) is False:
            raise ValueError(
                "TRADES maximizes a divergence whose gradient at x is zero: its attack needs random_start=True, "
                f"got {attack!r}"
            )

    def __call__(self, net: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cross-entropy and divergence. See ``Regularizer``."""
        self.check(attack)
        logits = net(x)
        log_reference = log_softmax(logits.detach())
        if attack.batch_norm != "train":
            with torch.no_grad(), batch_norm_mode(net, attack.batch_norm):
                log_reference = log_softmax(net(x))
        logits_adv = net(attack(net, x, y, loss=divergence, targets=log_reference))
        return trades_loss(logits, logits_adv, y, beta=self.beta), logits_adv

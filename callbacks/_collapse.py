"""When a loss of robustness is catastrophic overfitting, and when it is something else."""

from __future__ import annotations

import math

MIN_ABOVE_CHANCE = 0.1
"""A network whose PGD accuracy never was so far above chance was never robust: it has nothing to lose."""

_SIGMAS = 3.0


def has_collapsed(
    acc_single: float, acc_pgd: float, best_pgd: float, *, chance: float, samples: int, max_kept: float = 0.5
) -> bool:
    r"""Tell catastrophic overfitting (Wong et al. 2020, section 5.4) from noise, divergence and lack of robustness.

    All four must hold:

    * the network was robust: ``best_pgd`` is clearly above chance (0.1, and three standard errors);
    * it is not any more: ``acc_pgd`` is at most ``max_kept * best_pgd``;
    * that is no dip of a small probe set: the loss is more than three standard errors of the difference of two
      accuracies, :math:`\sqrt{(p(1-p) + q(1-q)) / n}`;
    * single-step accuracy stays high: at least ``best_pgd``. A network that diverges loses both.

    Args:
        acc_single: accuracy under the single-step attack now, in [0, 1].
        acc_pgd: accuracy under PGD now, in [0, 1].
        best_pgd: highest accuracy under PGD at any check so far, in [0, 1].
        chance: accuracy of the best constant answer.
        samples: size of the probe set.
        max_kept: the largest share of the best PGD accuracy that still counts as collapsed.
    """
    was_robust = best_pgd - chance > max(MIN_ABOVE_CHANCE, _SIGMAS * math.sqrt(chance * (1 - chance) / samples))
    error = math.sqrt((acc_pgd * (1 - acc_pgd) + best_pgd * (1 - best_pgd)) / samples)
    has_fallen = acc_pgd <= max_kept * best_pgd and best_pgd - acc_pgd > _SIGMAS * error
    return was_robust and has_fallen and acc_single >= best_pgd

"""Which frequencies a network on coordinates can hold.

Yüce, Ortiz-Jimenez, Besbinar, Frossard, "A structured dictionary perspective on implicit neural representations",
CVPR 2022, https://arxiv.org/abs/2112.01917.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_robust._number import check_count
from pl_robust.transforms._frequencies import Frequencies, as_rows, ascending, distinct, like, upright

_ROUNDING = 1e-12  # relative: sums in another order; far below the distance of a million frequencies
_CANDIDATES = 2_000_000  # rows looked at together


def polynomial_order(degree: int, num_layers: int) -> int:
    """Order of the frequency support of a network with polynomial activations: degree^(num_layers - 1).

    Each of the L - 1 activations multiplies its argument with itself up to ``degree`` times.

    Args:
        degree: K of the activations.
        num_layers: L, the linear layers after the first mapping, the last one included; that of
            ``models.FourierFeatureNetwork``. The mapping's own sines are no activation here: a SIREN of n layers has
            L = n - 1 (its later sines are no polynomials, but close to one of low degree for small arguments).

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is less than 1.

    Example:
        >>> polynomial_order(degree=2, num_layers=3)
        4
    """
    check_count(degree, "degree")
    check_count(num_layers, "num_layers")
    order: int = degree ** (num_layers - 1)
    return order


def frequency_support(frequencies: Frequencies, order: int, *, max_count: int = 1_000_000) -> Tensor:
    r"""List the frequencies :math:`\sum_t s_t \omega_t` with integers s of :math:`\sum_t |s_t| \leq` ``order``.

    Theorem 1 of the paper: a network that sees a signal's coordinates through sines of the frequencies
    :math:`\omega_t` and has polynomial activations holds no others. The order is that of ``polynomial_order``. ReLU
    and sine are no polynomials: for them a finite order is an approximation, with any order the support is exact.

    Args:
        frequencies: those of the mapping, [T, d], or [T] for signals of one axis; B of
            ``models.FourierFeatureNetwork`` in cycles per unit of coordinate, or w0 / 2π times the first weight of a
            SIREN. They are taken as the numbers they are: three times the float32 nearest to 0.1 is not the one
            nearest to 0.3, so give decimal fractions as lists or float64.
        order: largest sum of the absolute coefficients, at least 1.
        max_count: largest number of frequencies to list. Lattices have few, unrelated frequencies as many as there are
            combinations: sum over k of 2^k C(T, k) C(order, k), halved by the symmetry.

    Returns:
        The different frequencies [n, d] or [n], ascending by the first entry, then the second, and so on. A real signal
        that holds f holds -f: of the two the one is listed whose first entry that is not zero is positive. 0, the
        mean, is always among them. float64, on the CPU.

    Raises:
        TypeError: if an argument is not of its type.
        ValueError: if frequencies are not finite or have another shape, a number is less than 1, or there are more
            frequencies than ``max_count``.

    Example:
        >>> frequency_support([3, 10], order=2).tolist()
        [0.0, 3.0, 6.0, 7.0, 10.0, 13.0, 20.0]
    """
    check_count(order, "order")
    check_count(max_count, "max_count")
    rows = as_rows(frequencies)
    tolerance = _ROUNDING * order * float(rows.abs().amax()) if rows.numel() else 0.0
    generators = distinct(upright(rows, tolerance), tolerance)
    generators = generators[(generators != 0).any(dim=1)]
    steps = torch.cat([generators, -generators])
    # One level after the other: with one step more or less a sum ends in the level before, its own, or the next.
    before, level = rows.new_zeros(0, rows.shape[1]), rows.new_zeros(1, rows.shape[1])
    levels, count = [level], 1
    for length in range(1, order + 1):
        known = torch.cat([before, level])
        old = len(known)
        for part in torch.split(level, max(1, _CANDIDATES // max(1, len(steps)))):
            sums = (part[:, None] + steps).flatten(0, 1)
            known = distinct(torch.cat([known, upright(sums, tolerance)]), tolerance)
            if count + len(known) - old > max_count:
                raise ValueError(
                    f"{len(generators)} frequencies have {_combinations(len(generators), order)} combinations of order "
                    f"{order}, and up to order {length} already more than `max_count`={max_count} different "
                    "frequencies: lower `order`, give fewer frequencies, or raise `max_count`"
                )
        before, level = level, known[old:]
        levels.append(level)
        count += len(level)
        if not len(level):
            break
    support = torch.cat(levels)
    return like(frequencies, support[ascending(support)])


def _combinations(count: int, order: int) -> str:
    """Number of integer vectors of ``count`` entries whose absolute values sum to at most ``order``, as a text."""
    number = sum(2**k * math.comb(count, k) * math.comb(order, k) for k in range(min(count, order) + 1))
    return f"{number:,}" if number < 10**15 else f"about 1e{math.floor(math.log10(number))}"

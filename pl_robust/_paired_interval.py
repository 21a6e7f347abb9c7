"""Confidence intervals of differences between methods that were run on the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval of a mean.

    Attributes:
        low: its lower end.
        mean: the estimate.
        high: its upper end.
    """

    low: float
    mean: float
    high: float


def paired_interval(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, comparisons: int = 1
) -> Interval:
    """Student's t interval of the mean of ``first - second``, run by run.

    What makes a run hard for both cancels, so that the interval is narrower than those of the two means suggest.

    Args:
        first: a number for each run.
        second: of the other method, in the same order of runs.
        level: probability with which all intervals hold that are made together.
        comparisons: how many these are (Bonferroni).

    Raises:
        ValueError: if there are fewer than two runs, or not equally many, or a number is NaN or infinite.
    """
    from scipy import stats

    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"a paired interval needs the same two or more runs of both methods, got {len(first)} and {len(second)}"
        )
    differences = [one - other for one, other in zip(first, second, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"a paired interval needs finite numbers, got differences {differences}")
    center = mean(differences)
    quantile = float(stats.t.ppf(1 - (1 - level) / (2 * comparisons), len(differences) - 1))
    half = quantile * stdev(differences) / math.sqrt(len(differences))
    return Interval(center - half, center, center + half)

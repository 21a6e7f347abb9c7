from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from pl_robust._paired_interval import paired_interval


def test_it_is_the_interval_of_the_paired_t_test() -> None:
    random.seed(0)
    hardness = [random.gauss(0, 10) for _ in range(9)]
    first = [one + random.gauss(2, 1) for one in hardness]
    second = [one + random.gauss(0, 1) for one in hardness]
    expected = stats.ttest_rel(first, second).confidence_interval(0.9)
    low, center, high = paired_interval(first, second, level=0.9)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert center == pytest.approx(sum(first) / 9 - sum(second) / 9)
    assert high - low < 3  # what both have in common is gone
    joint = stats.ttest_rel(first, second).confidence_interval(1 - 0.05 / 4)
    low, _, high = paired_interval(first, second, comparisons=4)
    assert (low, high) == pytest.approx((joint.low, joint.high))


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    random.seed(1)
    holds = 0
    for _ in range(400):
        low, _, high = paired_interval([random.gauss(0.3, 1) for _ in range(5)], [0.0] * 5, level=0.9)
        holds += low < 0.3 < high
    assert abs(holds / 400 - 0.9) < 0.04


def test_equal_differences_have_no_width() -> None:
    assert paired_interval([3.0, 4.0], [1.0, 2.0]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([1.0], [2.0], "two or more runs of both methods, got 1 and 1"),
        ([1.0, 2.0], [1.0], "got 2 and 1"),
        ([1.0, math.nan], [1.0, 1.0], r"finite numbers, got differences \[0.0, nan\]"),
    ],
)
def test_errors_speak(first: list[float], second: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        paired_interval(first, second)

"""The network whose errors others are divided by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Literal, TypeAlias

from pl_robust.metrics._alexnet import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS

Baseline: TypeAlias = Literal["alexnet"] | Mapping[str, float | Sequence[float]]

CLEAN = "clean"
"""Name under which images without a corruption are counted; their severity is 0."""


def read_baseline(
    baseline: Baseline, corruptions: tuple[str, ...], severities: tuple[int, ...]
) -> list[tuple[float, ...]]:
    """Give the baseline's error rates, one row per type, one column per severity.

    Raises:
        ValueError: if it lacks a type, or holds what is no error rate.
        TypeError: if it is neither a name nor a mapping.
    """
    if isinstance(baseline, str) and baseline != "alexnet":
        raise ValueError(f"`baseline` must be 'alexnet', a dict of error rates, or None, got {baseline!r}")
    given: Mapping[str, object] = ALEXNET_ERRORS if isinstance(baseline, str) else baseline
    if not isinstance(given, Mapping):
        raise TypeError(f"`baseline` must be 'alexnet', a dict of error rates, or None, got {baseline!r}")
    missing = [name for name in corruptions if name not in given]
    if missing:
        whose = "AlexNet's errors" if isinstance(baseline, str) else "`baseline`"
        raise ValueError(
            f"{whose} must hold every type of `corruptions`, there are {', '.join(given)}; missing: "
            f"{', '.join(missing)}. Give `baseline` a dict that holds them, or None to divide by nothing"
        )
    return [_read_row(given[name], name, severities) for name in corruptions]


def _read_row(value: object, name: str, severities: tuple[int, ...]) -> tuple[float, ...]:
    if isinstance(value, Real):
        return (_read_rate(value, name),) * len(severities)
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 5:
        raise ValueError(f"`baseline` of {name} must be one error rate, or five for severities 1 to 5, got {value!r}")
    return tuple(_read_rate(value[severity - 1], name) for severity in severities)


def _read_rate(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise ValueError(f"`baseline` of {name} must hold error rates in (0, 1], got {value!r}; divide percents by 100")
    return float(value)


def read_clean(baseline: Baseline) -> float:
    """Give the baseline's error rate on clean images.

    Raises:
        ValueError: if it does not hold it.
    """
    if isinstance(baseline, str):
        return ALEXNET_CLEAN_ERROR
    if CLEAN not in baseline:
        raise ValueError(
            f"`relative`=True needs the baseline's error on clean images: `baseline[{CLEAN!r}]`, got {list(baseline)}"
        )
    return _read_rate(baseline[CLEAN], CLEAN)

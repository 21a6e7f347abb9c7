"""Numbers as the field writes them: ``8/255``."""

from __future__ import annotations

import math
from numbers import Integral, Real


def parse_number(value: object, name: str) -> float:
    """Turn ``0.03`` or ``"8/255"`` into a float.

    Args:
        value: a number, or a string holding a number or a fraction of two numbers.
        name: the argument's name, for the error.

    Raises:
        ValueError: if the string is neither a number nor a fraction, or divides by zero.
        TypeError: if ``value`` is neither a number nor a string.
    """
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise TypeError(f"`{name}` must be a number or a fraction such as '8/255', got {value!r}")
    if not isinstance(value, str):
        return float(value)
    try:
        numerator, slash, denominator = value.partition("/")
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"`{name}` must be a number or a fraction such as '8/255', got {value!r}") from None


def check_finite(value: object, name: str) -> float:
    """Give a finite number as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value!r}")
    return float(value)


def check_positive(value: object, name: str) -> float:
    """Give a positive, finite number as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive or not finite.
    """
    number = check_finite(value, name)
    if number <= 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}")
    return number


def check_count(value: object, name: str, *, least: int = 1) -> None:
    """Refuse what is no integer, or a smaller one than is allowed.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if int(value) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}")


def check_seed(value: object) -> None:
    """Refuse what is no seed of torch's generators.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is less than 0, or has more than 64 bits.
    """
    check_count(value, "seed", least=0)
    if isinstance(value, int) and value >= 2**64:
        raise ValueError(f"`seed` must be less than 2**64, got {value}")

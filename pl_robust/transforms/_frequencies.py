"""Frequencies of real signals as rows of a tensor: f and -f are one frequency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Frequencies: TypeAlias = Tensor | Sequence[float] | Sequence[Sequence[float]]


def as_rows(frequencies: Frequencies, axes: int | None = None) -> Tensor:
    """Give frequencies as float64 [n, d] on the CPU; [n] is taken as [n, 1].

    Lists of numbers keep their double precision, which ``torch.as_tensor`` would take from them.

    Args:
        frequencies: a tensor or lists of numbers.
        axes: the d that is needed; None takes any.

    Raises:
        TypeError: if they are no real numbers.
        ValueError: if they have another shape, NaN or infinity.
    """
    try:
        # A tensor's own conversion, not NumPy's, which knows no bfloat16 and no other device.
        given = frequencies.detach().cpu() if isinstance(frequencies, Tensor) else torch.from_numpy(_array(frequencies))
    except (TypeError, ValueError) as error:
        raise TypeError(f"frequencies must be a tensor or lists of numbers, got {frequencies!r}") from error
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"frequencies must be real numbers, got {given.dtype}")
    rows = given.double()
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.shape[1] or rows.shape[1] != (axes or rows.shape[1]):
        needed = "[n, d], or [n] for one axis" if axes is None else f"[n, {axes}]{', or [n]' if axes == 1 else ''}"
        raise ValueError(f"frequencies must be {needed}, one in each row, got {list(given.shape)}")
    if not rows.isfinite().all():
        raise ValueError("frequencies must be finite, got NaN or infinity")
    return rows


def like(frequencies: Frequencies, rows: Tensor) -> Tensor:
    """Give rows [n, 1] as [n], if the frequencies came like that."""
    is_flat = frequencies.ndim == 1 if isinstance(frequencies, Tensor) else np.ndim(frequencies) == 1
    return rows[:, 0] if is_flat else rows


def _array(frequencies: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array(frequencies, dtype=np.float64)


def upright(rows: Tensor, tolerance: float, free: Tensor | None = None) -> Tensor:
    """Of f and -f take the one whose first entry that is not zero is positive; entries within tolerance become zero.

    Args:
        rows: float64 [n, d].
        tolerance: in units of the frequencies.
        free: bool [n, d], entries that are the same with either sign; they become positive and do not decide.
    """
    rows = torch.where(rows.abs() <= tolerance, 0.0, rows)
    decides = rows != 0 if free is None else (rows != 0) & ~free
    first = decides.to(torch.uint8).argmax(dim=1, keepdim=True)
    turned = decides.gather(1, first) & (rows.gather(1, first) < 0)
    rows = torch.where(turned, -rows, rows) + 0.0  # no negative zeros
    return rows if free is None else torch.where(free, rows.abs(), rows)


def groups(rows: Tensor, tolerance: float) -> Tensor:
    """Number rows so that those which agree up to the tolerance in each entry have one number: int64 [n]."""
    numbers = torch.zeros(len(rows), dtype=torch.int64)
    for column in rows.T:
        values, order = column.sort()
        ranks = torch.zeros_like(numbers)
        ranks[order[1:]] = (values.diff() > tolerance).cumsum(0)
        numbers = torch.unique(numbers * len(rows) + ranks, return_inverse=True)[1]
    return numbers


def distinct(rows: Tensor, tolerance: float) -> Tensor:
    """Keep the first of the rows that agree up to the tolerance, in their order."""
    numbers = groups(rows, tolerance)
    first = torch.full((int(numbers.max()) + 1 if len(rows) else 0,), len(rows))
    first.scatter_reduce_(0, numbers, torch.arange(len(rows)), "amin")
    return rows[first.sort().values]


def ascending(rows: Tensor) -> Tensor:
    """Indices that sort rows by their first entry, then by their second, and so on."""
    return torch.from_numpy(np.lexsort(rows.numpy().T[::-1]))

"""Aliasing: different frequencies that are one on the points of a grid.

Yüce, Ortiz-Jimenez, Besbinar, Frossard, "A structured dictionary perspective on implicit neural representations",
CVPR 2022, https://arxiv.org/abs/2112.01917, figure 3: a network with too high frequencies fits the points it is trained
on with those that look the same there, and is wrong between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pl_robust._number import check_finite
from pl_robust.transforms._frequencies import Frequencies, as_rows, ascending, distinct, groups, like, upright
from pl_robust.transforms.spectrum import Spectrum

_ROUNDING = 1e-9  # relative to the highest frequency
_LARGEST = 2**53  # sampling rates: beyond, float64 does not tell one frequency from the next


class LeakedComponents(NamedTuple):
    """What a signal has beyond the reach of the grid that it was fitted on; the strongest first.

    Attributes:
        frequencies: [n, d], in the unit of the spectra.
        apparent: what they look like on the training grid, [n, d].
        amplitudes: on the full grid, [n].
        apparent_amplitudes: those of the apparent frequencies, on the full grid, [n].
        train_amplitudes: those of the apparent frequencies on the training grid, [n].
    """

    frequencies: Tensor
    apparent: Tensor
    amplitudes: Tensor
    apparent_amplitudes: Tensor
    train_amplitudes: Tensor


def fold_frequencies(frequencies: Frequencies, sampling_rate: float | Sequence[float]) -> Tensor:
    """Tell what frequencies look like when they are sampled: f - rate · round(f / rate), up to its sign.

    Args:
        frequencies: [n, d], or [n] for one axis.
        sampling_rate: samples per unit of coordinate, or one number for each axis: of each k-th of N points on a
            domain of length E it is N / (k E), 128 for every second one of 256 points on [0, 1).

    Returns:
        Frequencies of the same shape, no entry larger than half the rate. Of f and -f, which are one frequency of a
        real signal, the one whose first entry that is neither 0 nor half the rate is positive. float64, on the CPU.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if frequencies are not finite, have another shape or are 2**53 times the rate and more, or the rate
            is not positive.

    Example:
        >>> fold_frequencies([23, 105, 151], sampling_rate=128).tolist()
        [23.0, 23.0, 23.0]
    """
    rows = as_rows(frequencies)
    return like(frequencies, _fold(rows, _check_rate(sampling_rate, rows.shape[1])))


def find_aliases(frequencies: Frequencies, sampling_rate: float | Sequence[float]) -> list[Tensor]:
    """Find the frequencies that are the same on the points of a grid.

    Args:
        frequencies: [n, d], or [n] for one axis, such as a network's ``frequency_support``. f and -f count once.
        sampling_rate: as of ``fold_frequencies``.

    Returns:
        A tensor [m, d] or [m] for each group of m > 1 frequencies that fall together, the lowest first; groups in the
        order of what they look like. Empty if the grid tells all apart.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if frequencies are not finite, have another shape or are 2**53 times the rate and more, or the rate
            is not positive.

    Example:
        >>> find_aliases([0, 10, 23, 105], sampling_rate=128)
        [tensor([ 23., 105.], dtype=torch.float64)]
    """
    rows = as_rows(frequencies)
    rate = _check_rate(sampling_rate, rows.shape[1])
    if not len(rows):
        return []
    tolerance = _tolerance(rows)
    rows = distinct(upright(rows, tolerance), tolerance)
    rows = rows[rows.norm(dim=1).argsort(stable=True)]
    folded = _fold(rows, rate)
    numbers = groups(folded, tolerance)
    parts = torch.split(rows[numbers.argsort(stable=True)], numbers.bincount().tolist())
    first = torch.stack([_fold(part[:1], rate)[0] for part in parts])
    return [like(frequencies, parts[index]) for index in ascending(first).tolist() if len(parts[index]) > 1]


def leaked_components(train: Spectrum, full: Spectrum, *, threshold: float = 0.01) -> LeakedComponents:
    """Find what a signal has beyond the reach of the grid it was fitted on, and what that looks like there.

    A network that was fitted on every second point of a tone and holds another one that only the full grid tells from
    it: the tone is too weak on the full grid, the rest has leaked. If the target itself has frequencies above half the
    training grid's rate, give the spectra of the error, network less target.

    Args:
        train: spectrum of the network (or its error) on the training grid, a regular part of the full one on the same
            domain.
        full: spectrum on the full grid.
        threshold: smallest amplitude to report, in the unit of the values.

    Returns:
        The components; where there are several signals or channels, amplitudes are the largest of theirs.

    Raises:
        TypeError: if an argument is no spectrum.
        ValueError: if the spectra differ in domain or number of axes, the full grid is coarser, amplitudes are not
            finite, or ``threshold`` is not positive.
    """
    for name, one in (("train", train), ("full", full)):
        if not isinstance(one, Spectrum):
            raise TypeError(f"`{name}` must be a Spectrum, as spectrum() gives it, got {type(one).__name__}")
        if not one.amplitudes.isfinite().all():
            raise ValueError(f"the amplitudes of `{name}` must be finite: the signal or the network has diverged")
    if not check_finite(threshold, "threshold") > 0:
        raise ValueError(f"`threshold` must be positive, got {threshold!r}")
    if len(train.dim) != len(full.dim) or not math.isclose(train.extent, full.extent):
        raise ValueError(
            "`train` and `full` must be of one domain, got "
            f"{len(train.dim)} axes of length {train.extent:g} and {len(full.dim)} of length {full.extent:g}"
        )
    points = [[len(axis) for axis in spectrum.frequencies] for spectrum in (train, full)]
    if any(few > many for few, many in zip(*points, strict=True)):
        raise ValueError(f"`full` must have at least the points of `train`, {points[0]}, got {points[1]}")
    rows = torch.cartesian_prod(*full.frequencies).reshape(-1, len(full.dim))
    rate = torch.tensor(points[0], dtype=torch.float64) / train.extent
    tolerance = _tolerance(rows)
    half = torch.tensor(points[1], dtype=torch.float64) / full.extent / 2
    rows = upright(rows, tolerance, (rows.abs() - half).abs() <= tolerance)
    rows = distinct(rows, tolerance)
    apparent = _fold(rows, rate)
    strength = _strength(full.at(rows))
    leaked = ((rows - apparent).abs() > tolerance).any(dim=1) & (strength >= threshold)
    rows, apparent, strength = rows[leaked], apparent[leaked], strength[leaked]
    order = strength.argsort(descending=True, stable=True)
    rows, apparent = rows[order], apparent[order]
    return LeakedComponents(
        rows, apparent, strength[order], _strength(full.at(apparent)), _strength(train.at(apparent))
    )


def _check_rate(sampling_rate: float | Sequence[float], axes: int) -> Tensor:
    """Give the rate of each axis, float64 [d]."""
    try:
        rate = torch.tensor(sampling_rate, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`sampling_rate` must be a number, or one for each axis, got {sampling_rate!r}") from error
    if rate.ndim > 1 or (rate.ndim == 1 and len(rate) != axes):
        raise ValueError(f"`sampling_rate` must be one number, or one for each of {axes} axes, got {sampling_rate!r}")
    if not (rate.isfinite() & (rate > 0)).all():
        raise ValueError(f"`sampling_rate` must be positive and finite, got {sampling_rate!r}")
    return rate.expand(axes)


def _tolerance(rows: Tensor) -> float:
    # Not of the rate, too: on a very fine grid it would take low frequencies for none.
    return _ROUNDING * float(rows.abs().max()) if rows.numel() else 0.0


def _fold(rows: Tensor, rate: Tensor) -> Tensor:
    tolerance = _tolerance(rows)
    turns = (rows / rate).round()
    if (turns.abs() > _LARGEST).any():
        raise ValueError(
            f"frequencies must be less than 2**53 sampling rates, got {float(turns.abs().max()):g} of them"
        )
    rows = rows - rate * turns
    return upright(rows, tolerance, (rows.abs() - rate / 2).abs() <= tolerance)


def _strength(amplitudes: Tensor) -> Tensor:
    """Largest amplitude over signals and channels: [n, ...] -> [n], on the CPU."""
    return amplitudes.cpu().reshape(len(amplitudes), math.prod(amplitudes.shape[1:])).amax(dim=1)

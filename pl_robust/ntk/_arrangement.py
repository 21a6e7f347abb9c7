"""Which sample the rows of a gradient belong to, found out by experiment.

A layer sees a batch in any order that the network likes: images [n, ...], tokens [n, T, d] or [T n, d], windows. If a
sample's values are scaled, so are the gradients in its rows and in no others. Powers of two scale without rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

_LEVELS = {2: 8, 4: 96, 8: 512}  # powers of two that tell samples apart, by the bytes of a number and its range
_PROBES = 2
_TOLERANCE = {2: 1e-3, 4: 1e-3, 8: 1e-6}  # some kernels add up in random order

Arrange: TypeAlias = Callable[[Tensor], Tensor]
"""Brings rows [R, ...] of n samples to [n, R / n, ...]."""


def draw_scales(values: Tensor) -> Tensor:
    """Powers of two for n samples [n], all different for few, hard to confuse for many; always the same ones."""
    levels = _LEVELS[values.element_size()]
    generator = torch.Generator().manual_seed(0)
    rounds = [torch.randperm(levels, generator=generator) for _ in range(-(-len(values) // levels))]
    exponents = torch.cat(rounds)[: len(values)] - levels // 2
    return torch.exp2(exponents.double()).to(values)


def find_arrangement(rows: Tensor, scaled: Tensor, scales: Tensor) -> Arrange | None:
    """Find how rows are arranged by sample.

    Args:
        rows: gradients [R, ...].
        scaled: the same, after the samples' values were multiplied by ``scales``.
        scales: [n].

    Returns:
        What brings rows to their samples; None if they are arranged in no way that we know, or mix samples.
    """
    count = len(scales)
    if len(rows) % count or rows.is_complex():
        return None
    # Random projections say as much as the rows: none but a row of zeros has none but zeros.
    directions = torch.randn(_PROBES, rows[0].numel(), generator=torch.Generator().manual_seed(0)).to(rows)
    rows, scaled = (
        torch.stack([part.reshape(len(part), -1) @ direction for direction in directions], 1) for part in (rows, scaled)
    )
    for sample_first in (True, False):
        each = len(rows) // count
        factors = scales.repeat_interleave(each) if sample_first else scales.repeat(each)
        expected = rows * factors[:, None]
        # Rows that are not finite fit into no arrangement.
        fits = (scaled - expected).abs().amax(1) <= _TOLERANCE[rows.element_size()] * expected.abs().amax(1)
        if bool(fits.all()):
            return partial(_by_sample, count=count, sample_first=sample_first)
    return None


def _by_sample(rows: Tensor, *, count: int, sample_first: bool) -> Tensor:
    if sample_first:
        return torch.unflatten(rows, 0, (count, -1))
    return torch.unflatten(rows, 0, (-1, count)).transpose(0, 1)

"""Noise, drawn for each value on its own: Gaussian, speckle, impulse and shot noise."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._sample_random import SampleRandom

_BITS = 24  # of a uniform number
_ROUNDING = 1e-4  # what float32 may miss a level of 1/255 by, in levels


def gaussian_noise(x: Tensor, random: SampleRandom, std: float) -> Tensor:
    """Add normal noise."""
    noise = random.normal(*x.shape[1:])
    return torch.add(x, noise, alpha=std, out=noise)


def speckle_noise(x: Tensor, random: SampleRandom, std: float) -> Tensor:
    """Add normal noise in proportion to each value."""
    noise = random.normal(*x.shape[1:])
    return torch.addcmul(x, x, noise, value=std, out=noise)


def impulse_noise(x: Tensor, random: SampleRandom, amount: float) -> Tensor:
    """Replace a share of the values by 0 or 1, half of them each."""
    # From -1/2 to 1/2; what is not at either end becomes 0, the rest goes far beyond the values' range. Several times
    # faster than boolean masks.
    noise = random.uniform(*x.shape[1:]).sub_(0.5)
    torch.hardshrink(noise, 0.5 - amount / 2, out=noise)
    return torch.add(x, noise, alpha=16, out=noise).clamp_(0, 1)


def shot_noise(x: Tensor, random: SampleRandom, rate: float) -> Tensor:
    r"""Count photons: :math:`\mathrm{Poisson}(\mathrm{rate} \cdot x) / \mathrm{rate}`, for any x.

    The sum of two Poisson numbers is one of the sum of their rates: a first one for the level of 1/255 below x, from a
    table, and a second one for the rest, which is 0 for images that were stored as uint8.
    """
    scaled = x * 255
    level = (scaled + _ROUNDING).floor_()
    photons = _draw_of_levels(level.int().clamp_(0, 255), random.uniform(*x.shape[1:]), rate)
    rest = scaled.sub_(level)
    # Most images have none; to ask an accelerator would cost more than to draw.
    # NaN is some: it must stay, and keep no other image from its rest.
    if x.device.type != "cpu" or not rest.amax() <= _ROUNDING:
        rest.masked_fill_(rest <= _ROUNDING, 0.0)
        photons += _draw_small(rest.mul_(rate / 255), random.uniform(*x.shape[1:]), rate / 255)
    return photons.div_(rate)


def _draw_of_levels(level: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Draw Poisson numbers of the rates ``rate * level / 255`` by Walker's alias method.

    Each level has 2**bits equally probable cells, each with two numbers and a threshold: the uniform number's first
    bits choose the cell, the others, below the threshold or not, the number.
    """
    thresholds, numbers, bits = _alias_tables(rate, level.device)
    word = uniform.mul(2**_BITS).int().flatten()
    cell = (level.flatten() << bits).add_(word >> (_BITS - bits))
    second = word.bitwise_and_((1 << (_BITS - bits)) - 1).ge_(thresholds.index_select(0, cell))
    return numbers.index_select(0, cell.mul_(2).add_(second)).view_as(level)


@lru_cache(maxsize=64)
def _alias_tables(rate: float, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Make the tables of all levels: thresholds int32 [256 * cells], numbers float32 [256 * cells * 2], cells' bits.

    Probabilities are rounded to multiples of 2**-24, as fine as the uniform numbers are.
    """
    mean = torch.arange(256, dtype=torch.float64)[:, None] * (rate / 255)
    count = torch.arange(math.ceil(rate + 10 * math.sqrt(rate) + 20), dtype=torch.float64)
    below = torch.exp(torch.xlogy(count, mean) - mean - torch.lgamma(count + 1)).cumsum(1)
    share = below.mul(2**_BITS).round_().long().diff(dim=1, prepend=torch.zeros(256, 1, dtype=torch.long))
    first = (share > 0).int().argmax(1, keepdim=True)
    width = share.shape[1] - (share.flip(1) > 0).int().argmax(1, keepdim=True) - first
    bits = (int(width.max()) - 1).bit_length()
    cells, full = 1 << bits, 1 << (_BITS - bits)
    number = first + torch.arange(cells)
    share = F.pad(share, (0, cells)).gather(1, number)
    threshold, alias = torch.full_like(share, full), number.clone()
    for _ in range(cells - 1):  # the fullest cell gives the emptiest what that lacks
        low, high = share.argmin(1, keepdim=True), share.argmax(1, keepdim=True)
        has = share.gather(1, low)
        lacks = has < full  # at some levels all are full before the others
        threshold.scatter_(1, low, torch.where(lacks, has, threshold.gather(1, low)))
        alias.scatter_(1, low, torch.where(lacks, number.gather(1, high), alias.gather(1, low)))
        share.scatter_add_(1, high, has - full).scatter_(1, low, full)
    numbers = torch.stack((number, alias), 2).flatten().float()
    return threshold.flatten().int().to(device), numbers.to(device), bits


def _draw_small(rate: Tensor, uniform: Tensor, largest: float) -> Tensor:
    """Draw Poisson numbers of rates up to about 2 by counting the steps of the distribution below uniform numbers."""
    probability = rate.neg().exp_()
    below = probability.clone()
    number = rate * 0  # NaN stays
    steps = 1
    while _tail(largest, steps) > 2.0**-_BITS:
        number += uniform >= below
        probability.mul_(rate).div_(steps)
        below += probability
        steps += 1
    return number


def _tail(rate: float, count: int) -> float:
    """Give the probability that a Poisson number is at least ``count``."""
    return -math.expm1(math.log(math.fsum(rate**k / math.factorial(k) for k in range(count))) - rate)

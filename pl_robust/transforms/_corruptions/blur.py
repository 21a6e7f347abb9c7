"""Blurs that treat all directions alike: of a Gaussian, of a lens out of focus, of frosted glass, of a zoom."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._corruptions.cache import rows_at_once
from pl_robust.transforms._corruptions.smoothing import smooth
from pl_robust.transforms._sample_random import SampleRandom


def gaussian_blur(x: Tensor, random: SampleRandom, sigma: float) -> Tensor:
    """Smooth with a Gaussian of ``sigma`` pixels; the edges repeat."""
    return smooth(x, sigma)


def defocus_blur(x: Tensor, random: SampleRandom, radius: float, smoothing: float) -> Tensor:
    """Take the mean over a disk with a smoothed rim; the image is mirrored at its outer pixels.

    The published kernel is a table that ends where the disk does if its radius is 8 or 10. There what the smoothing
    throws over the table's edge comes back, and the weights sum to 1.01; here they sum to 1.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1].
        random: not needed.
        radius: of the disk in pixels; the image must be larger by 3.
        smoothing: standard deviation in pixels of the Gaussian that smooths the disk, of 3 x 3 taps up to radius 8 and
            of 5 x 5 beyond.
    """
    reach = int(radius)
    taps = _taps(1 if radius <= 8 else 2, smoothing)
    pad = reach + len(taps) - 1
    # How far up and down the disk goes in its middle column and in each one beside it.
    heights = [math.isqrt(int(radius**2 - column**2)) for column in range(reach + 1)]
    area = 2 * sum(2 * height + 1 for height in heights) - (2 * heights[0] + 1)
    planes = x.reshape(-1, *x.shape[2:])
    out = torch.empty_like(planes)
    size = rows_at_once(x, (x.shape[2] + 2 * pad) * (x.shape[3] + 2 * pad), len(planes))
    for source, target in zip(torch.split(planes, size), torch.split(out, size), strict=True):
        padded = F.pad(source, (pad,) * 4, mode="reflect")
        # All numbers in one line: each shift is a slice of it. What runs over a row's end falls into the padding.
        down = padded.shape[2]
        line = _filter(_filter(padded.view(-1), taps, 1), taps, down)
        total = _sum_over_disk(line, heights, down)
        torch.div(total.as_strided(target.shape, padded.stride()), area, out=target)
    return out.view(x.shape)


def glass_blur(x: Tensor, random: SampleRandom, sigma: float, reach: float, passes: float) -> Tensor:
    """Smooth, move values to pixels nearby, smooth again.

    A pass visits the pixels as the published code does, from the last to the first, and gives each the value that a
    random pixel nearby has by then; so a value can go on and on during a pass. That code means to swap the two values,
    but swaps two views of one array, and the other pixel keeps its value; only in an image without an axis of channels
    it does swap. It also rounds down to 8 bits before the first pass, here nothing is rounded.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1].
        random: one row for each image.
        sigma: standard deviation of both smoothings in pixels.
        reach: a pixel's value comes from -reach to reach - 1 rows and columns away, as published.
        passes: how often.
    """
    smoothed = smooth(x, sigma)
    height, width = x.shape[2:]
    source = torch.arange(height * width, device=x.device).expand(len(x), -1)
    for _ in range(int(passes)):
        source = source.gather(1, _draw_sources(random, int(reach), height, width))
    everywhere = source[:, None].expand(-1, x.shape[1], -1)
    return smooth(smoothed.flatten(2).gather(2, everywhere).view(x.shape), sigma)


def zoom_blur(x: Tensor, random: SampleRandom, end: float, step: float) -> Tensor:
    """Take the mean of the image and of its centre enlarged by several factors, of which 1 is the first.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1].
        random: not needed.
        end: of the factors; as many as ``numpy.arange`` gives, whose rounding can bring the end in.
        step: from one factor to the next.
    """
    factors = np.arange(1, end, step).tolist()
    total = x * 2
    for factor in factors[1:]:
        total += enlarge(x, factor)
    return total.div_(len(factors) + 1)


def enlarge(x: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of images bilinearly, as ``scipy.ndimage.zoom`` does with order 1.

    The centre is 1 / factor of the image, rounded up to whole pixels; its outer pixels stay the outer ones. What is
    then too large loses its border.

    Args:
        x: images, float32 [B, C, H, W].
        factor: at least 1.
    """
    rows, columns = (_places(side, factor).to(x.device) for side in x.shape[2:])
    grid = torch.stack([columns.expand(x.shape[2:]), rows[:, None].expand(x.shape[2:])], dim=2)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=True)


def _places(side: int, factor: float) -> Tensor:
    """Say where an enlarged image's pixels come from, in grid_sample's units: float32 [side]."""
    cut = math.ceil(side / factor)
    size = round(cut * factor)
    pixels = torch.arange(side, dtype=torch.float64) + (size - side) // 2
    return (((side - cut) // 2 + pixels * ((cut - 1) / (size - 1))) * (2 / (side - 1)) - 1).float()


def _taps(reach: int, sigma: float) -> list[float]:
    """Give a Gaussian's taps from the middle one to one side; all of both sides sum to 1."""
    taps = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(reach + 1)]
    total = 2 * sum(taps) - taps[0]
    return [tap / total for tap in taps if tap > 1e-9]


def _filter(line: Tensor, taps: list[float], stride: int) -> Tensor:
    """Filter a line of numbers, neighbours ``stride`` apart; it becomes shorter by the taps' reach at both ends."""
    reach = (len(taps) - 1) * stride
    out = line[reach : len(line) - reach] * taps[0]
    for i, tap in enumerate(taps[1:], 1):
        out.add_(line[reach - i * stride :][: len(out)], alpha=tap)
        out.add_(line[reach + i * stride :][: len(out)], alpha=tap)
    return out


def _sum_over_disk(line: Tensor, heights: list[int], down: int) -> Tensor:
    """Sum the disk around each number of a line, rows ``down`` apart; it becomes shorter by the reach at both ends.

    Column by column of the disk; columns of one height are one sum, which grows into that of the next height.
    """
    reach = len(heights) - 1
    column = line[reach * down : len(line) - reach * down].clone()
    total = column.new_zeros(len(column) - 2 * reach)
    for height in range(reach + 1):
        if height:
            column += line[(reach - height) * down :][: len(column)]
            column += line[(reach + height) * down :][: len(column)]
        for offset in (i for i in range(reach + 1) if heights[i] == height):
            total += column[reach - offset :][: len(total)]
            if offset:
                total += column[reach + offset :][: len(total)]
    return total


def _draw_sources(random: SampleRandom, reach: int, height: int, width: int) -> Tensor:
    """Draw which pixel each one's value after a pass comes from: int64 [B, H * W]."""
    top, bottom, right = reach + 1, height - reach + 1, width - reach + 1
    steps = torch.arange(-reach, reach, device=random.device)
    steps = (steps[:, None] * width + steps).flatten()
    choice = random.integers(0, len(steps), height - 2 * reach, width - 2 * reach)
    place = torch.arange(height * width, device=choice.device).view(height, width)
    source = place.repeat(len(choice), 1, 1)
    source[:, top:bottom, top:right] += steps[choice]
    # Is that pixel's value a new one, since its turn came earlier? Then it comes from where that pixel's came from.
    visited = torch.zeros(height, width, dtype=torch.bool, device=choice.device)
    visited[top:bottom, top:right] = True
    is_new = visited.take(source) & (source > place)
    source, is_new = source.flatten(1), is_new.flatten(1)
    # Each turn of the loop doubles the links that are followed. A link leads to another one in less than half of the
    # cases, and never with reach 1: a chain of more than 32 is not to be expected in a million images.
    for _ in range(5 if reach > 1 else 0):
        source, is_new = torch.where(is_new, source.gather(1, source), source), is_new & is_new.gather(1, source)
    return source

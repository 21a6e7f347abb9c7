"""Blur along a straight line, as a camera's or a snowflake's motion leaves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._corruptions.cache import rows_at_once
from pl_robust.transforms._sample_random import SampleRandom


def motion_blur(x: Tensor, random: SampleRandom, radius: float, sigma: float) -> Tensor:
    """Blur each image along a line, at an angle uniform in [-45, 45) degrees.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1].
        random: one row for each image.
        radius: half of the trail's length in pixels.
        sigma: standard deviation of the trail's weights in pixels.
    """
    return blur_along(x, radius, sigma, random.uniform() * 90 - 45)


def blur_along(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    r"""Blur each image along a line, one-sided, as ImageMagick's motion-blur operator does.

    .. math:: y_{r, c} = \sum_{i = 0}^{2 \cdot radius} w_i\, x_{r + \lceil i \sin \theta - 1/2 \rceil,\;
        c + \lceil i \cos \theta - 1/2 \rceil}, \qquad w_i \propto e^{-i^2 / 2 \sigma^2}, \quad \sum_i w_i = 1

    Rows count downwards: at angle 0 a pixel takes its right neighbours' values, so that a bright point leaves a trail
    to its left; at 90 degrees it takes those below, and the trail goes up. What lies outside repeats the edge.

    ImageMagick rounds images to its quantum, 8 or 16 bits, here nothing is rounded. The package imagecorruptions, which
    has the same offsets, leaves the rest of the trail out, and the image darker, where it is longer than the image.

    Args:
        x: images, float32 [B, C, H, W].
        radius: in pixels; the trail has 2 * radius + 1 of them.
        sigma: standard deviation of the trail's weights in pixels, above 0.
        angle: of each image, in degrees, float [B].
    """
    batch, channels, height, width = x.shape
    # What lies beyond 5.5 sigma weighs less than float32 can tell.
    taps = min(2 * math.ceil(radius) + 1, math.ceil(5.5 * sigma) + 1)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(taps)]
    total = math.fsum(weights)
    steps = torch.arange(taps, device=x.device, dtype=torch.float64)[:, None]
    radians = torch.deg2rad(angle.double())
    reach = taps - 1
    padded = F.pad(x, (reach, reach, 0, 0), mode="replicate")
    index = torch.int32 if padded.numel() < 2**31 else torch.int64  # half of the memory to go through
    down, right = (torch.ceil(steps * part - 0.5).to(index) for part in (radians.sin(), radians.cos()))
    # The row of each channel that tap i wants for an image's row, and where in the padded numbers it begins.
    rows = (torch.arange(height, device=x.device, dtype=index) + down[:, :, None]).clamp_(0, height - 1)
    planes = torch.arange(batch * channels, device=x.device, dtype=index).view(batch, channels, 1) * height
    begins = (planes + rows[:, :, None]) * (width + 2 * reach) + (reach + right[:, :, None, None])
    # A row begins at every number: a view that overlaps itself, of which rows are copied as a whole.
    begin_anywhere = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    out = x.new_zeros(batch * channels * height, width)
    size = rows_at_once(x, width, len(out))
    for part, own in zip(torch.split(out, size), torch.split(begins.view(taps, -1), size, 1), strict=True):
        row = torch.empty_like(part)
        for weight, begin in zip(weights, own, strict=True):
            torch.index_select(begin_anywhere, 0, begin, out=row)
            part.add_(row, alpha=weight / total)
    return out.view(x.shape)

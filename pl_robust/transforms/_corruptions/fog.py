"""Fog: a fractal cloud is laid over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_robust.transforms._sample_random import SampleRandom

_AMPLITUDE = 100.0  # of the fractal's coarsest part; only its ratio to the finer ones matters


def fog(x: Tensor, random: SampleRandom, strength: float, decay: float) -> Tensor:
    """Add ``strength`` times a plasma fractal in [0, 1], and scale the sum to the image's own maximum.

    The fractal's side is the smallest power of two that is not below the image's longer side, as published; the image
    gets its upper left corner.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1].
        random: one row for each image.
        strength: of the fog, in units of the image's values.
        decay: by which factor the fractal's amplitude falls from one scale to the next finer one, above 1.

    Returns:
        Images of the same shape, from 0 to their own maximum.
    """
    height, width = x.shape[2:]
    field = _plasma(random, 1 << (max(height, width) - 1).bit_length(), decay)
    values = field.flatten(1)
    low, high = (value[:, None, None] for value in (values.amin(1), values.amax(1)))
    layer = (field[:, :height, :width] - low).mul_(strength / (high - low))
    peak = x.flatten(1).amax(1)[:, None, None, None]
    return (x + layer[:, None]).mul_(peak / (peak + strength))


def _plasma(random: SampleRandom, side: int, decay: float) -> Tensor:
    """Draw fractals by the diamond-square algorithm on a torus: float32 [B, side, side].

    At each scale a point in the middle of four becomes their mean and a number of its own, uniform around 0.
    """
    amplitude = _AMPLITUDE
    # One number for the first corner, which stays 0, and three for each point that there is at a scale.
    counts = [1] + [3 * 4**scale for scale in range(side.bit_length() - 1)]
    first, *others = random.uniform(side * side).sub_(0.5).split_with_sizes(counts, 1)
    field = torch.zeros_like(first)[:, None]
    for numbers in others:
        size = field.shape[1]
        # The released code multiplies numbers in [-amplitude, amplitude] by the amplitude once more.
        square, above, left = numbers.mul_(2 * amplitude**2).view(-1, 3, size, size).unbind(1)
        right = field + field.roll(-1, 2)
        below = field + field.roll(-1, 1)
        square.add_(right + right.roll(-1, 1), alpha=0.25)
        above.add_(right.add_(square).add_(square.roll(1, 1)), alpha=0.25)
        left.add_(below.add_(square).add_(square.roll(1, 2)), alpha=0.25)
        finer = field.new_empty(len(field), size, 2, size, 2)
        finer[:, :, 0, :, 0] = field
        finer[:, :, 0, :, 1] = above
        finer[:, :, 1, :, 0] = left
        finer[:, :, 1, :, 1] = square
        field = finer.view(-1, 2 * size, 2 * size)
        amplitude /= decay
    return field

"""Gaussian smoothing in exact arithmetic: no other image, thread or device can move a bit of the result."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pl_robust.transforms._corruptions.cache import rows_at_once

Border = Literal["edge", "mirror"]

# Numbers up to 4 in steps of 2**-24 times weights up to 1 in steps of 2**-27: float64 holds every product and every
# sum of them, so that it does not matter in which order a matrix product adds, which it chooses by the batch's size.
_STEPS = 2.0**24
_PARTS = 2.0**27
_BLOCK = 32  # rows of a band of the matrix: wide enough for a matrix product, not much wider than the kernels


class _Band(NamedTuple):
    """Some rows of the matrix that smooths an axis: which ones, and the columns in which they are not zero."""

    start: int
    first: int
    last: int
    weights: Tensor


def smooth(x: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = "edge") -> Tensor:
    """Smooth images as ``scipy.ndimage.gaussian_filter`` does, of which ``skimage.filters.gaussian`` is made.

    Args:
        x: float32 [B, C, H, W], within [-4, 4]; taken in steps of 2**-24.
        sigma: standard deviation in pixels.
        truncate: where the kernel ends, in standard deviations, rounded to whole pixels.
        border: "edge" repeats the outermost pixel (scipy's "nearest"), "mirror" the image behind its edge, the
            outermost pixel twice (scipy's "reflect"), as often as it takes where the kernel is wider than the image.

    Returns:
        A new tensor of the same shape; each result correctly rounded but for the steps.
    """
    height, width = x.shape[2:]
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x.clone()
    down = _bands(height, sigma, radius, border, x.device)
    across = _bands(width, sigma, radius, border, x.device)
    planes = x.reshape(-1, height, width)
    out = torch.empty_like(planes)
    size = rows_at_once(x, height * width, len(planes))
    buffers = planes.new_empty((2, min(size, len(planes)), height, width), dtype=torch.float64)
    for source, target in zip(torch.split(planes, size), torch.split(out, size), strict=True):
        steps, smoothed = buffers[:, : len(source)]
        steps.copy_(source).mul_(_STEPS).round_()
        for start, first, last, weights in down:
            band = smoothed[:, start : start + len(weights)]
            torch.bmm(weights.expand(len(source), -1, -1), steps[:, first:last], out=band)
        smoothed.mul_(1 / _PARTS).round_()
        for start, first, last, weights in across:
            band = steps[:, :, start : start + len(weights)]
            torch.bmm(smoothed[:, :, first:last], weights.mT.expand(len(source), -1, -1), out=band)
        target.copy_(steps.mul_(1 / (_STEPS * _PARTS)))
    return out.view(x.shape)


@lru_cache(maxsize=64)
def _bands(size: int, sigma: float, radius: int, border: Border, device: torch.device) -> tuple[_Band, ...]:
    """Cut the matrix that smooths an axis of some pixels into bands; the weights in units of 1 / _PARTS."""
    with torch.inference_mode(False):
        offsets = torch.arange(-radius, radius + 1)
        kernel = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum() * _PARTS).round()
        kernel[radius] += _PARTS - kernel.sum()
        columns = torch.arange(size)[:, None] + offsets
        if border == "edge":
            columns.clamp_(0, size - 1)
        else:
            columns %= 2 * size
            columns = torch.minimum(columns, 2 * size - 1 - columns)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix.scatter_add_(1, columns, kernel.expand(size, -1))
        bands = []
        for start in range(0, size, _BLOCK):
            rows = matrix[start : start + _BLOCK]
            filled = rows.any(0).nonzero()
            first, last = int(filled[0]), int(filled[-1]) + 1
            bands.append(_Band(start, first, last, rows[:, first:last].to(device)))
        return tuple(bands)

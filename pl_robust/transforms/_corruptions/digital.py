"""What cameras and files do to values: brightness, contrast, saturation, larger pixels, JPEG."""

from __future__ import annotations

import math
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pl_robust.transforms._sample_random import SampleRandom

# Lost in rounding beside any level of 1/255; decides 0 / 0 in black and gray pixels.
_TINY = 1e-30


def brightness(x: Tensor, random: SampleRandom, shift: float) -> Tensor:
    """Add to HSV's value, the largest channel, and keep hue and saturation; to gray images add likewise.

    The channels keep their ratios, so no hue is computed. Black becomes gray.
    """
    value = x.amax(1, keepdim=True)
    return (x + _TINY).div_(value + _TINY).mul_((value + shift).clamp_(max=1))


def saturate(x: Tensor, random: SampleRandom, factor: float, shift: float) -> Tensor:
    """Scale and shift HSV's saturation and keep hue and value; gray images stay as they are.

    A channel is value * (1 - saturation * distance), its distance from the value in units of the smallest channel's
    being a matter of hue alone. A gray pixel of an RGB image has hue 0 and turns red by the shift, as published.
    """
    if x.shape[1] == 1:
        return x
    value = x.amax(1, keepdim=True)
    span = value - x.amin(1, keepdim=True)
    saturation = (span / (value + _TINY)).mul_(factor).add_(shift).clamp_(0, 1)
    distance = value - x
    distance[:, 1:] += _TINY
    distance.div_(span + _TINY).mul_(saturation)
    return distance.neg_().add_(1).mul_(value)


def contrast(x: Tensor, random: SampleRandom, factor: float) -> Tensor:
    """Move all values towards their channel's mean in the image."""
    # Rows first: of one long sum each thread would take a part, and the rounding would depend on how many there are.
    total = x.sum(-1, keepdim=True).double().sum(-2, keepdim=True)
    mean = (total / (x.shape[-2] * x.shape[-1])).float()
    return torch.lerp(mean, x, factor)


def pixelate(x: Tensor, random: SampleRandom, share: float) -> Tensor:
    """Shrink to a share of the sides by PIL's box filter, and enlarge by repeating pixels."""
    rows, row_weights, row_of = _boxes(x.shape[-2], share, x.device)
    columns, column_weights, column_of = _boxes(x.shape[-1], share, x.device)
    terms = zip(rows, row_weights[..., None], strict=True)
    y = _sum([x.index_select(-2, index).mul_(weight) for index, weight in terms])
    shape = (*y.shape[:-1], -1)
    y = y.view(-1, y.shape[-1])  # of many ways to pick columns the fastest
    y = _sum([y.index_select(1, index).mul_(weight) for index, weight in zip(columns, column_weights, strict=True)])
    return y.index_select(1, column_of).view(shape).index_select(-2, row_of)


def _sum(terms: list[Tensor]) -> Tensor:
    """Add up, in the first term."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


@lru_cache(maxsize=64)
def _boxes(side: int, share: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Find which pixels of a side make which of the smaller one, and back.

    Returns:
        The j-th pixel of each box, int64 [n, small], its weight, float32 [n, small], 0 where a box has fewer than n,
        and each pixel's box, int64 [side].
    """
    small = int(side * share)
    scale = side / small
    # In PIL's order of operations: its rounding decides where a pixel's middle meets an edge.
    middle = (torch.arange(small, dtype=torch.float64) + 0.5) * scale
    first = (middle - scale / 2 + 0.5).long()
    index = first + torch.arange(math.ceil(scale) + 1)[:, None]
    offset = (index - middle + 0.5) * (1 / scale)
    inside = (offset > -0.5) & (offset <= 0.5) & (index < side)
    some = inside.any(1)
    index, weight = index[some].clamp_(max=side - 1), (inside / inside.sum(0))[some].float()
    steps = torch.full((side,), small / side, dtype=torch.float64)
    steps[0] /= 2
    return index.to(device), weight.to(device), steps.cumsum(0).long().to(device)


def jpeg_compression(x: Tensor, random: SampleRandom, quality: float) -> Tensor:
    """Write and read JPEG files, gray ones for gray images.

    By PIL's codec on the CPU, image by image, whatever the device: so the bits are those of stored files. (That of
    torchvision gives the same ones, and is deprecated.)
    """
    levels = x.mul(255).clamp_(0, 255).round_().to(torch.uint8).cpu()
    read = torch.empty(*levels.shape[:1], *levels.shape[2:], levels.shape[1], dtype=torch.uint8)
    for image, result in zip(levels.numpy(), read.numpy(), strict=True):
        bands = [Image.fromarray(band) for band in image]
        file = BytesIO()
        (Image.merge("RGB", bands) if len(bands) == 3 else bands[0]).save(file, "JPEG", quality=int(quality))
        result[...] = np.asarray(Image.open(file)).reshape(result.shape)
    return torch.where(x.isnan(), x, read.to(x.device).movedim(-1, 1).contiguous().float().div_(255))

"""Spatter: drops of water or of mud lie on the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._corruptions.smoothing import smooth
from pl_robust.transforms._sample_random import SampleRandom

_WATER = (175, 238, 238)  # red, green, blue: pale turquoise
_MUD = (63, 42, 20)
_GRAY = (0.2989, 0.5870, 0.1140)

# Steps to a pixel's neighbours, down and right, and their lengths in fifths of a pixel: the 5x5 chamfer distance, which
# errs by 2 % at most. Where cv2 has 2.1969 pixels for the knight's step, here it is 2.2, so that bytes do.
_STEPS = ((0, 1, 5), (1, 0, 5), (1, 1, 7), (1, -1, 7), (1, 2, 11), (2, 1, 11), (1, -2, 11), (2, -1, 11))
_FIFTHS = 5  # in a pixel
_FAR = 20  # pixels: no edge is farther away
_HYSTERESIS = 4  # pixels along a weak edge


def spatter(
    x: Tensor,
    random: SampleRandom,
    mean: float,
    std: float,
    smoothing: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Tensor:
    """Add shining water, or cover with mud, where smoothed normal noise exceeds a threshold.

    Water is the layer of noise times a relief of its drops, relative to its maximum; mud is a smoothed mask, cut off
    below 0.8. The released code names the colours' channels in the order of BGR, gives them in that of RGB and adds
    them to RGB images: water is pale turquoise and mud is brown, there and here. Where it divides by zero, in an image
    without a drop of water, here the image stays what it is.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1], with 1 or 3 channels.
        random: one row for each image.
        mean: of the noise.
        std: of the noise before it is smoothed.
        smoothing: standard deviation in pixels of the Gaussian that smooths it.
        threshold: what is below it becomes 0.
        strength: of the water, in units of its colour; of mud the standard deviation in pixels that smooths its mask.
        mud: 0 for water, 1 for mud.

    Returns:
        Images of the same shape, at least 0.
    """
    layer = smooth(random.normal(1, *x.shape[2:]).mul_(std).add_(mean), smoothing)[:, 0]
    if mud:
        mask = smooth((layer > threshold).float()[:, None], strength)[:, 0]
        amount, color = F.threshold(mask, 0.8, 0.0), _MUD
    else:
        amount, color = _water(F.threshold(layer, threshold, 0.0)).mul_(strength), _WATER
    shades: tuple[float, ...] = color
    if x.shape[1] == 1:
        shades = (sum(weight * shade for weight, shade in zip(_GRAY, color, strict=True)),)
    out = torch.empty_like(x)
    for source, target, shade in zip(x.unbind(1), out.unbind(1), shades, strict=True):
        torch.add(source, amount, alpha=shade / 255, out=target)
        if mud:
            target.addcmul_(source, amount, value=-1)
    return out


def _water(layer: Tensor) -> Tensor:
    """Give the amount of water: layers [B, H, W] -> float32 [B, H, W], each from 0 to 1 if there is any.

    The released chain, in whole numbers as cv2 has them: edges, distance from them up to 20 pixels, 3x3 mean rounded
    down, equal histogram, emboss filter, 3x3 mean, times the layer. Above 1 a layer counts as 1, where the released
    conversion to 8 bits begins at 0 again. The batch comes last, so that an image's shifts are slices with long rows.
    """
    liquid = (layer * 255).clamp_(max=255).byte()
    distance = _distance(_edges(liquid.permute(1, 2, 0).contiguous().short())).short()
    # The half lets no rounding reach the next level.
    level = _sum_of_nine(distance).float().add_(0.5).mul_(1 / (9 * _FIFTHS)).byte()
    relief = _sum_of_nine(_emboss(_equalize(level).short())).float().mul_(1 / 9).round_().byte()
    water = liquid.float().mul_(relief.permute(2, 0, 1).contiguous())
    return water.div_(water.flatten(1).amax(1).clamp_(min=1)[:, None, None])


def _edges(x: Tensor) -> Tensor:
    """Find edges as Canny's detector does with thresholds 50 and 150: int16 [H, W, B] -> 0 or 1, uint8.

    Equal to cv2's in all but two points: at angles between 22.48 and 22.5 degrees from an axis a gradient counts as
    diagonal, and a weak edge is followed for 4 pixels from a strong one, which is the whole of nearly every one.

    Arithmetic on whole numbers, and masks whose bits are all 0 or all 1, since torch compares and selects slowly.
    """
    padded = _pad(x, 1)
    across = padded[:, 2:] - padded[:, :-2]
    right = (across[1:-1] * 2).add_(across[:-2]).add_(across[2:])
    along = (padded[:, 1:-1] * 2).add_(padded[:, :-2]).add_(padded[:, 2:])
    down = along[2:] - along[:-2]
    anti = (right ^ down) >> 15  # the signs differ
    right.abs_()
    down.abs_()
    strength = right + down
    # Shifted right by 15 bits, a number's sign becomes a mask; 12 / 29 is the tangent of 22.5 degrees.
    horizontal = (down * 29).sub_(right * 12) >> 15
    vertical = (right * 29).sub_(down * 12) >> 15
    around = _pad(strength, None)
    above = around + 1
    # What a pixel must reach: of two equal neighbours on an axis the first one is an edge, on a diagonal neither.
    height, width = x.shape[:2]

    def at(field: Tensor, row: int, column: int) -> Tensor:
        return field[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    bar = torch.maximum(at(above, -1, -1), at(above, 1, 1)).bitwise_and_(~anti)
    bar |= torch.maximum(at(above, -1, 1), at(above, 1, -1)).bitwise_and_(anti)
    bar &= ~(horizontal | vertical)
    bar |= torch.maximum(at(above, 0, -1), at(around, 0, 1)).bitwise_and_(horizontal)
    bar |= torch.maximum(at(above, -1, 0), at(around, 1, 0)).bitwise_and_(vertical)
    weak = torch.minimum(strength - bar, strength - 51)
    strong = torch.minimum(weak, strength - 151)
    weak, strong = (((margin >> 15) + 1).byte() for margin in (weak, strong))
    edges = _pad(strong, None)
    for _ in range(_HYSTERESIS):
        column = edges[:-2] | edges[1:-1]
        column |= edges[2:]
        square = column[:, :-2] | column[:, 1:-1]
        square |= column[:, 2:]
        torch.bitwise_and(square, weak, out=edges[1:-1, 1:-1])
    return edges[1:-1, 1:-1]


def _distance(edges: Tensor) -> Tensor:
    """Measure how far the next edge is: 0 or 1, uint8 [H, W, B] -> fifths of a pixel up to 100, uint8 [H, W, B].

    A shortest way has steps of two kinds only, so one kind after the other is taken, in runs of 1, 2, 4, ... steps.
    """
    far = _FAR * _FIFTHS
    distance = (1 - edges).mul_(far)
    farther = torch.empty_like(distance)
    for down, right, length in _STEPS:
        run = 1
        while run * length < far:
            torch.add(distance, run * length, out=farther)
            rows, columns = (_apart(size, run * step) for size, step in zip(edges.shape, (down, right), strict=False))
            for here, there in ((0, 1), (1, 0)):
                part = distance[rows[here], columns[here]]
                torch.minimum(part, farther[rows[there], columns[there]], out=part)
            run *= 2
    return distance


def _apart(size: int, shift: int) -> tuple[slice, slice]:
    """Give the positions of pairs along an axis, the second of each ``shift`` after the first."""
    return slice(max(-shift, 0), size - max(shift, 0)), slice(max(shift, 0), size - max(-shift, 0))


def _equalize(level: Tensor) -> Tensor:
    """Equalize each image's histogram: levels 0 to 20, uint8 [H, W, B] -> 0 to 255, uint8 [H, W, B]."""
    batch, bins = level.shape[2], _FAR + 1
    index = level.int().add_(torch.arange(batch, dtype=torch.int32, device=level.device) * bins).flatten()
    ones = torch.ones_like(index)
    counts = torch.zeros(batch * bins, dtype=torch.int32, device=level.device).scatter_add_(0, index.long(), ones)
    below = counts.view(batch, bins).cumsum(1)
    total = below[:, -1:]
    lowest = below.masked_fill(below == 0, len(index)).amin(1, keepdim=True)
    table = (below - lowest).clamp_(min=0) * (255 / (total - lowest))
    # An image of one level keeps it.
    table = torch.where(total == lowest, torch.arange(bins, device=level.device), table.round_())
    return table.byte().flatten().index_select(0, index).view(level.shape)


def _emboss(x: Tensor) -> Tensor:
    """Filter with [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]] and clip: int16 [H, W, B] -> 0 to 255, int16."""
    padded = _pad(x, 2)
    embossed = (padded[2:, 2:] - padded[:-2, :-2]).mul_(2).add_(x)
    embossed += padded[2:, 1:-1]
    embossed += padded[1:-1, 2:]
    embossed -= padded[:-2, 1:-1]
    embossed -= padded[1:-1, :-2]
    return embossed.clamp_(0, 255)


def _sum_of_nine(x: Tensor) -> Tensor:
    """Sum each pixel's 3x3 neighbourhood: int16 [H, W, B] -> the same."""
    padded = _pad(x, 2)
    columns = (padded[:-2] + padded[1:-1]).add_(padded[2:])
    return (columns[:, :-2] + columns[:, 1:-1]).add_(columns[:, 2:])


def _pad(x: Tensor, inner: int | None) -> Tensor:
    """Put a border of one pixel around [H, W, B]: zeros, or what lies ``inner`` pixels inside of it."""
    height, width, batch = x.shape
    padded = x.new_zeros(height + 2, width + 2, batch)
    padded[1:-1, 1:-1] = x
    if inner is not None:
        padded[0], padded[-1] = padded[inner], padded[-1 - inner]
        padded[:, 0], padded[:, -1] = padded[:, inner], padded[:, -1 - inner]
    return padded

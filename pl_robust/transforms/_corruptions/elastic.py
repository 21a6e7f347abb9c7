"""Elastic deformation: a random affine map, then a random smooth displacement of every pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._corruptions.smoothing import smooth
from pl_robust.transforms._sample_random import SampleRandom


def elastic_transform(x: Tensor, random: SampleRandom, amplitude: float, smoothness: float, affine: float) -> Tensor:
    """Map each image affinely, then displace its pixels; both sample bilinearly and mirror the image at its edges.

    The affine map takes three corners of the middle square, a third of the shorter side from its centre, to random
    places nearby. A displacement is smoothed noise, uniform in [-1, 1) before, one for each coordinate. In an image
    that is not square the published code takes the centre's row for its column, and the package imagecorruptions
    smooths each axis by its own side.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1].
        random: one row for each image.
        amplitude: of the displacement, in units of the image's shorter side, as all three.
        smoothness: standard deviation of the Gaussian that smooths the noise.
        affine: how far a corner moves at most in each coordinate.
    """
    height, width = x.shape[2:]
    side = min(height, width)
    if affine > 0:
        x = move_corners(x, (random.uniform(3, 2) * 2 - 1) * (affine * side))
    if amplitude > 0:
        noise = random.uniform(2, height, width).mul_(2).sub_(1)
        shift = smooth(noise, smoothness * side, truncate=3.0, border="mirror").mul_(amplitude * side)
        x = displace(x, shift)
    return x


def displace(x: Tensor, shift: Tensor) -> Tensor:
    """Give each pixel the value at its place plus its shift, as ``scipy.ndimage.map_coordinates(mode="reflect")`` does.

    Args:
        x: images, float32 [B, C, H, W].
        shift: in pixels, float32 [B, 2, H, W]: columns first, then rows.
    """
    height, width = x.shape[2:]
    columns, rows = (torch.arange(size, device=x.device, dtype=torch.float32) for size in (width, height))
    # grid_sample's -1 and 1 without align_corners: the outer edges of the outer pixels, at which this border mirrors.
    grid = torch.stack([shift[:, 0] * (2 / width), shift[:, 1] * (2 / height)], dim=1)
    grid[:, 0] += (2 * columns + 1) / width - 1
    grid[:, 1] += ((2 * rows + 1) / height - 1)[:, None]
    return _sample(x, grid, align_corners=False)


def move_corners(x: Tensor, moves: Tensor) -> Tensor:
    """Map images affinely, as ``cv2.warpAffine`` does, so that three corners of the middle square move.

    Args:
        x: images, float32 [B, C, H, W].
        moves: of the corner on the lower right, the upper right and the upper left, in pixels, float32 [B, 3, 2]:
            columns first, then rows.
    """
    height, width = x.shape[2:]
    reach = min(height, width) // 3
    corner = (width // 2 + reach, height // 2 - reach)
    # Where the upper right corner goes, and the two sides that meet there: they were (0, 2 reach) and (-2 reach, 0).
    moves = moves[..., None, None]
    to_column, to_row = corner[0] + moves[:, 1, 0], corner[1] + moves[:, 1, 1]
    down = (moves[:, 0, 0] - moves[:, 1, 0], moves[:, 0, 1] - moves[:, 1, 1] + 2 * reach)
    left = (moves[:, 2, 0] - moves[:, 1, 0] - 2 * reach, moves[:, 2, 1] - moves[:, 1, 1])
    # A pixel that is a * down + b * left from there comes from as many of the old sides from the old corner.
    scale = 2 * reach / (down[0] * left[1] - down[1] * left[0])
    columns = torch.arange(width, device=x.device, dtype=torch.float32) - to_column
    rows = torch.arange(height, device=x.device, dtype=torch.float32)[:, None] - to_row
    source_column = corner[0] + down[1] * scale * columns - down[0] * scale * rows
    source_row = corner[1] + left[1] * scale * columns - left[0] * scale * rows
    # grid_sample's -1 and 1 with align_corners: the centres of the outer pixels, at which this border mirrors.
    grid = torch.stack([source_column * (2 / (width - 1)), source_row * (2 / (height - 1))], dim=1) - 1
    return _sample(x, grid, align_corners=True)


def _sample(x: Tensor, grid: Tensor, *, align_corners: bool) -> Tensor:
    """Sample images bilinearly, mirrored at their edges; the grid is float32 [B, 2, H, W]."""
    grid = grid.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=align_corners)

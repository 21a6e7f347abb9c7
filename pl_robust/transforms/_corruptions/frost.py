"""Frost: a photo of a frosted window is laid over the image."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._sample_random import SampleRandom

_PACKAGE = "torch_uncertainty_assets"
# The released code has six files and draws from the first five, of which the second and the third are the same photo.
_FILES = ("frost1.jpg", "frost2.jpg", "frost2.jpg", "frost3.jpg", "frost4.jpg")
# A photo is enlarged until it exceeds the image by a tenth, which leaves a choice of where to cut.
_MARGIN = 1.1
_GRAY = (0.2989, 0.5870, 0.1140)


def frost(x: Tensor, random: SampleRandom, image: float, ice: float, scale: float) -> Tensor:
    """Give ``image`` times the image and ``ice`` times a random piece of a photo.

    The photos are those of the package torch-uncertainty-assets: the released ones, two of them as JPEG instead of
    PNG, drawn as often as there. In gray images a photo has its luminance; the package imagecorruptions weights its red
    as blue and its blue as red there.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1], with 1 or 3 channels.
        random: one row for each image.
        image: weight of the image.
        ice: weight of the photo.
        scale: size of the photo in units of its own, more where the image would not fit into it.

    Returns:
        Images of the same shape, from 0 to ``image + ice``.

    Raises:
        ModuleNotFoundError: if torch-uncertainty-assets is not installed.
        FileNotFoundError: if it is, without a photo.
    """
    height, width = x.shape[-2:]
    sizes = (photo.shape[1:] for photo in _photos())
    factors = tuple(max(scale, _MARGIN * height / size[0], _MARGIN * width / size[1]) for size in sizes)
    photos, heights, widths = _resized(factors, x.device)
    choice = random.integers(0, len(photos))
    top = (random.uniform() * (heights - height)[choice]).long()
    left = (random.uniform() * (widths - width)[choice]).long()
    # Every piece of this size that there is, as a view: indexing it copies only those that were drawn.
    pieces = photos.unfold(2, height, 1).unfold(3, width, 1)
    layer = pieces[choice, :, top, left].float().mul_(ice / 255)
    if x.shape[1] == 1:
        red, green, blue = layer.chunk(3, 1)
        layer = red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2]
    return layer.add_(x, alpha=image)


@lru_cache(maxsize=1)
def _photos() -> tuple[Tensor, ...]:
    """Read the photos, once in a process: uint8 [3, H, W] each."""
    try:
        folder = resources.files(_PACKAGE) / "frost"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "frost needs the photos of the package torch-uncertainty-assets, which is not installed: "
            "pip install torch-uncertainty-assets"
        ) from error
    photos = []
    for name in _FILES:
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"frost needs the photo {name} of the package torch-uncertainty-assets, and {folder} has none: "
                "pip install --force-reinstall torch-uncertainty-assets"
            ) from error
        with Image.open(io.BytesIO(data)) as photo:
            photos.append(torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1).contiguous())
    return tuple(photos)


@lru_cache(maxsize=8)  # a few tables, image sizes and devices are in use at a time; megabytes each
def _resized(factors: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Resize each photo by its factor: uint8 [n, 3, H, W], padded with zeros; true heights and widths, int64 [n]."""
    with torch.inference_mode(False):
        resized = [_resize(photo, factor) for photo, factor in zip(_photos(), factors, strict=True)]
        heights, widths = ([photo.shape[side] for photo in resized] for side in (1, 2))
        ends = [(0, max(widths) - photo.shape[2], 0, max(heights) - photo.shape[1]) for photo in resized]
        padded = torch.stack([F.pad(photo, end) for photo, end in zip(resized, ends, strict=True)])
        return padded.to(device), torch.tensor(heights, device=device), torch.tensor(widths, device=device)


def _resize(photo: Tensor, factor: float) -> Tensor:
    """Resize as the released codes do: uint8 [3, H, W], bicubic if it grows, else bilinear without smoothing."""
    if factor > 1:
        size = [math.ceil(factor * side) for side in photo.shape[1:]]
        resized = F.interpolate(photo[None].float(), size=size, mode="bicubic")
    else:
        resized = F.interpolate(photo[None].float(), scale_factor=factor, mode="bilinear")
    return resized[0].round().clamp(0, 255).byte()

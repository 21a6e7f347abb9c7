"""Snow: flakes on their way down are laid over a whitened image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust.transforms._corruptions.motion import blur_along
from pl_robust.transforms._sample_random import SampleRandom

_GRAY = (0.299, 0.587, 0.114)


def snow(
    x: Tensor,
    random: SampleRandom,
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    image: float,
) -> Tensor:
    """Whiten the image and add blurred flakes, and the same flakes turned by 180 degrees.

    Flakes are normal noise, enlarged, kept where it exceeds a threshold, and blurred along a direction between 45 and
    135 degrees. As in the released code the middle of the enlarged noise is kept, before the blur; the package
    imagecorruptions keeps a corner of it, after the blur. Flakes are rounded to multiples of 1/255 after the blur, as
    in both.

    Args:
        x: images, float32 [B, C, H, W] in [0, 1], with 1 or 3 channels.
        random: one row for each image.
        mean: of the noise.
        std: of the noise.
        zoom: how many pixels apart two numbers of the noise are.
        threshold: what is below it becomes 0.
        radius: of the blur in pixels.
        sigma: standard deviation of the blur in pixels.
        image: weight of the image; the rest is a white one.

    Returns:
        Images of the same shape, at least 0.
    """
    layer = F.threshold(_noise(x, random, mean, std, zoom), threshold, 0.0).clamp_(max=1)
    angle = random.uniform().mul_(90).sub_(135)
    layer = blur_along(layer, radius, sigma, angle).mul_(255).round_().div_(255)
    # image * x + (1 - image) * max(x, white), with the maximum outermost.
    colors = x.chunk(x.shape[1], 1)
    weights = [1.5 * (1 - image) * weight for weight in (_GRAY if len(colors) == 3 else (1.0,))]
    white = colors[0] * weights[0] + 0.5 * (1 - image)
    for color, weight in zip(colors[1:], weights[1:], strict=True):
        white.add_(color, alpha=weight)
    whitened = torch.add(white, x, alpha=image)
    torch.maximum(whitened, x, out=whitened)
    return whitened.add_(layer + layer.flip(2, 3))


def _noise(x: Tensor, random: SampleRandom, mean: float, std: float, zoom: float) -> Tensor:
    """Draw normal numbers ``zoom`` pixels apart, and interpolate between them: float32 [B, 1, H, W].

    Corners stay corners, as in scipy's zoom.
    """
    height, width = x.shape[2:]
    coarse = [math.ceil(side / zoom) for side in (height, width)]
    size = [round(side * zoom) for side in coarse]
    noise = random.normal(1, *coarse).mul_(std).add_(mean)
    noise = F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    # Rounded up and enlarged, it may be a few pixels too large.
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return noise[:, :, top : top + height, left : left + width]

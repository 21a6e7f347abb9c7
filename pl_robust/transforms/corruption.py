"""The common corruptions, on batches and on any device: 15 of the benchmark and 4 extra ones, at 5 severities.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
https://arxiv.org/abs/1903.12261; and the package imagecorruptions, Michaelis et al., "Benchmarking Robustness in Object
Detection: Autonomous Driving when Winter is Coming", 2019, https://arxiv.org/abs/1907.07484.

What differs from their code, on purpose:

- Every image has a seed of its own; theirs draw from numpy's global generator.
- Results are rounded to the nearest multiple of 1/255; theirs are truncated, half a level darker in the mean. Motion
  and glass blur round nothing before that.
- Any side from 16 pixels on, any aspect ratio, gray images with one channel.
- Glass blur: each pixel takes a neighbour's value, which is what their swap of two views of one array comes to.
- Defocus blur: the kernel's weights sum to 1; theirs sum to 1.01 at radius 8 and 10.
- Motion blur and snow: a trail longer than the image repeats the edge; that of imagecorruptions ends, and is darker.
- Snow: flakes are cut from the middle of the enlarged noise before the blur, as in the first code only.
- Frost: photos from the package torch-uncertainty-assets, the published ones, two of them compressed.
- Elastic transform: both axes are measured by the shorter side.
- Shot noise: of Poisson's law what a uniform number of 24 bits can tell.
- Spatter: an image without a drop stays what it is; theirs divide by zero.

Pixelate and JPEG compression do to 8-bit images what PIL does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from pl_robust.transforms._corruptions.blur import defocus_blur, gaussian_blur, glass_blur, zoom_blur
from pl_robust.transforms._corruptions.digital import brightness, contrast, jpeg_compression, pixelate, saturate
from pl_robust.transforms._corruptions.elastic import elastic_transform
from pl_robust.transforms._corruptions.fog import fog
from pl_robust.transforms._corruptions.frost import frost
from pl_robust.transforms._corruptions.motion import motion_blur
from pl_robust.transforms._corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from pl_robust.transforms._corruptions.snow import snow
from pl_robust.transforms._corruptions.spatter import spatter
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._primitive import check_images, in_float32
from pl_robust.transforms._sample_random import SampleRandom

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The benchmark's 15 names, in the published order."""

EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 4 names for validation, which the benchmark leaves out of its means."""

_EFFECTS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}
# A corruption's place here goes into its random numbers: new ones belong at the end.
_ORDER = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
_SMALLEST_SIDE = 16  # pixels
# Values at a time on a CPU: the steps of an effect find them in its cache. Noise has few, all as large as the image.
_BLOCK = 2**20
_NOISE_BLOCK = 2**18
_NOISE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


@torch.no_grad()
def corrupt(
    x: Tensor,
    name: str,
    severity: int,
    *,
    table: TableName = "imagenet",
    seeds: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Corrupt each image of a batch.

    An image's result depends on the image, its seed and the arguments only: on a CPU it has the same bits in any
    batch, at any place, on any number of threads. On a GPU it is close to that, for the random numbers are the same.

    The result is rounded to the nearest multiple of 1/255, so that an image made in memory equals the one read back
    from a file of uint8. Computed in float32 whatever the dtype and the autocast; not differentiable.

    Args:
        x: images, float [B, C, H, W] in [0, 1], with 1 or 3 channels and sides of at least 16 pixels. Values are not
            looked at: outside [0, 1], what comes out is some image in [0, 1], and NaN may stay NaN.
        name: one of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 1 to 5.
        table: the constants: ``"cifar"`` as for CIFAR-10-C (32 pixels), ``"tiny_imagenet"`` (64) or ``"imagenet"``
            (224). Blurs are measured in pixels: take the table whose images are nearest in size to yours.
        seeds: int64 [B], one for each image, any values: by convention the image's index in its dataset. None draws
            them.
        generator: source of the seeds where none are given, on the CPU; None takes torch's global one.

    Returns:
        Images of the same shape, dtype and device, multiples of 1/255 as near as float32 and the dtype have
        them; a new tensor.

    Raises:
        TypeError: if ``x`` is not floating point, ``severity`` no integer, or ``seeds`` not int64.
        ValueError: if another argument is not as described, or both ``seeds`` and ``generator`` are given.
    """
    _check_choice(name, severity, table)
    _check_batch(x)
    if seeds is None:
        seeds = torch.randint(2**62, (len(x),), generator=generator)
    elif generator is not None:
        raise ValueError("`generator` draws seeds where none are given: give `seeds` or `generator`, not both")
    _check_seeds(seeds, len(x))
    seeds = seeds.to(x.device, non_blocking=seeds.device.type == "cpu")  # what comes back must have arrived
    effect, constants = _EFFECTS[name], TABLES[name][table][severity - 1]
    stream = 5 * _ORDER.index(name) + severity - 1
    at_once = _NOISE_BLOCK if name in _NOISE else _BLOCK
    block = max(1, at_once // x[:1].numel()) if x.device.type == "cpu" and len(x) else max(1, len(x))
    with in_float32(x):
        # A tensor: by a number an accelerator would not divide, but multiply by what is almost 1/255.
        top = torch.full((), 255.0, device=x.device)
        result = torch.empty(x.shape, device=x.device)
        blocks = (whole.split(block) for whole in (x, SampleRandom(seeds, stream), result))
        for images, random, levels in zip(*blocks, strict=True):
            if len(images):
                y = effect(images.float().contiguous(), random, *constants)
                torch.mul(y, 255, out=levels).clamp_(0, 255).round_().div_(top)
    return result.to(x.dtype)


class Corruption:
    """One corruption at one severity: ``corruption(x)`` is ``corrupt(x, name, severity, table=table)``.

    Args:
        name: one of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 1 to 5.
        table: the constants: ``"cifar"``, ``"tiny_imagenet"`` or ``"imagenet"``.

    Raises:
        TypeError: if ``severity`` is no integer.
        ValueError: if an argument is not as described.
    """

    def __init__(self, name: str, severity: int, table: TableName = "imagenet") -> None:
        _check_choice(name, severity, table)
        self.name = name
        self.severity = severity
        self.table: TableName = table

    def __call__(self, x: Tensor, seeds: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Corrupt each image of a batch.

        Args:
            x: images, float [B, C, H, W] in [0, 1], with 1 or 3 channels and sides of at least 16 pixels.
            seeds: int64 [B], one for each image; None draws them.
            generator: source of the seeds where none are given, on the CPU; None takes torch's global one.

        Returns:
            Images of the same shape, dtype and device, a new tensor.
        """
        return corrupt(x, self.name, self.severity, table=self.table, seeds=seeds, generator=generator)


def table_for(shape: Sequence[int]) -> TableName:
    """Name the table made for images of about this size: CIFAR's were 32 pixels, Tiny ImageNet's 64, ImageNet's 224."""
    side = min(shape[-2:])
    return "cifar" if side <= 48 else "tiny_imagenet" if side <= 96 else "imagenet"


def _check_choice(name: str, severity: object, table: str) -> None:
    """Refuse what is in no table."""
    if name not in _ORDER:
        raise ValueError(f"`name` must be one of {', '.join(_ORDER)}, got {name!r}")
    if isinstance(severity, bool) or not isinstance(severity, Integral):
        raise TypeError(f"`severity` must be an integer from 1 to 5, got {severity!r}")
    if not 1 <= int(severity) <= 5:
        raise ValueError(f"`severity` must be from 1 to 5, got {severity!r}; a clean image needs no corruption")
    if table not in get_args(TableName):
        raise ValueError(f"`table` must be one of {', '.join(get_args(TableName))}, got {table!r}")


def _check_batch(x: Tensor) -> None:
    """Refuse images that no published corruption is for."""
    check_images(x)
    if x.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got shape {list(x.shape)}")
    if min(x.shape[-2:]) < _SMALLEST_SIDE:
        raise ValueError(
            f"images must have sides of at least {_SMALLEST_SIDE} pixels, got shape {list(x.shape)}; enlarge them "
            "first, for example with torch.nn.functional.interpolate"
        )


def _check_seeds(seeds: Tensor, batch: int) -> None:
    """Refuse what is not one seed for each image."""
    if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64:
        got = seeds.dtype if isinstance(seeds, Tensor) else type(seeds).__name__
        raise TypeError(f"`seeds` must be an int64 tensor with one seed for each image, got {got}")
    if seeds.shape != (batch,):
        raise ValueError(
            f"`seeds` must have shape [{batch}], one seed for each image of the batch, got {list(seeds.shape)}"
        )

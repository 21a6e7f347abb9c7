"""AugMix: mixtures of chains of simple image operations, against common corruptions.

Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: a simple data processing method to improve robustness and
uncertainty", ICLR 2020, https://arxiv.org/abs/1912.02781.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust._number import check_finite
from pl_robust.transforms._primitive import BatchAugmentation, Primitive
from pl_robust.transforms.prime import PRIME, PRIMEParameters

Motion: TypeAlias = Literal["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]


class AugMix(BatchAugmentation):
    r"""Augment a batch: :math:`(1 - m) x + m \sum_c w_c\, \mathrm{chain}_c(x)`.

    For each image ``width`` chains of 1 to ``depth`` operations, each drawn uniformly from the nine that do not overlap
    with the corruptions of ImageNet-C: rotate, shear and translate in x and in y, posterize, solarize, autocontrast,
    equalize; :math:`w \sim \mathrm{Dirichlet}(1, \dots, 1)`, :math:`m \sim \mathrm{Beta}(1, 1)`. All parameters are
    drawn for each image, chain and step (torchvision's AugMix draws operations and strengths once for a batch, the
    strengths from a coarse grid), and each operation runs once for all images that drew it, on their device. Mixture
    and randomness are those of ``PRIME``, which took the mixture from here.

    Differs from the released code in that images keep their float precision from step to step, where Pillow rounds to
    8 bits; posterize, solarize and equalize are defined on 8 bits and see the images rounded to them.

    Args:
        severity: of the operations, 1 to 10; published are 3 for CIFAR and 1 for ImageNet. Strengths are uniform
            between 0.01 and ``severity`` / 10 of 30 degrees, a shear of 0.3, a third of the side, 4 bits, 256 levels.
        width: number of chains, 3 as published.
        depth: largest number of operations in a chain, 3 as published.

    Raises:
        TypeError: if ``width`` or ``depth`` is no integer, or ``severity`` no number; for a batch that is not floating
            point.
        ValueError: if ``severity`` does not lie between 1 and 10, or a number is less than 1; for a batch that is no
            [B, C, H, W].
    """

    def __init__(self, *, severity: int = 3, width: int = 3, depth: int = 3) -> None:
        if not 1 <= check_finite(severity, "severity") <= 10:
            raise ValueError(
                f"`severity` must lie between 1 and 10 (published: 3 for CIFAR, 1 for ImageNet), got {severity!r}"
            )
        motions: tuple[Motion, ...] = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        operations: tuple[Primitive[Any], ...] = (
            *(Move(motion, severity) for motion in motions),
            Posterize(severity),
            Solarize(severity),
            AutoContrast(),
            Equalize(),
        )
        self.severity = severity
        self.width = width
        self.depth = depth
        self._chains = PRIME(operations, width=width, depth=depth)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment a batch.

        Args:
            x: images, float [B, C, H, W] in [0, 1].
            generator: source of all randomness, on the CPU whatever the device of ``x``; None takes torch's global one.

        Returns:
            Images of the same shape, dtype, device and range, a new tensor.
        """
        return self._chains(x, generator)

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> PRIMEParameters:
        """Draw the parameters for a batch of ``shape`` [B, C, H, W]; see ``PRIME.draw``."""
        return self._chains.draw(shape, device=device, generator=generator)

    def apply(self, x: Tensor, parameters: PRIMEParameters) -> Tensor:
        """Augment a batch with what ``draw`` gave for its shape."""
        return self._chains.apply(x, parameters)


def draw_strength(
    severity: float, largest: float, count: int, device: torch.device | str, generator: torch.Generator | None
) -> Tensor:
    """Draw strengths as published: uniform between 0.01 and ``severity`` / 10 of the largest, float32 [count]."""
    level = 0.1 + (severity - 0.1) * torch.rand(count, device=device, generator=generator)
    return level * (largest / 10)


class Maps(NamedTuple):
    """Where the pixels of the result come from, float32 [B, 2, 3]: (x, y, 1) -> (x, y), in pixels."""

    matrices: Tensor


class Move(Primitive[Maps]):
    """Rotate, shear or translate each image to a random side, by a random amount.

    Pixels are interpolated linearly; what comes from outside is black.

    Args:
        motion: shears keep the first row or column in its place, rotations the centre.
        severity: 1 to 10.
    """

    def __init__(self, motion: Motion, severity: float) -> None:
        self.motion = motion
        self.severity = severity

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Maps:
        """Draw a map for each image."""
        batch, _, height, width = shape
        largest = {"rotate": 30, "translate_x": width / 3, "translate_y": height / 3}.get(self.motion, 0.3)
        amount = draw_strength(self.severity, largest, batch, device, generator)
        if not self.motion.startswith("shear"):
            amount = amount.trunc()  # whole degrees and pixels, as published
        amount *= torch.randint(2, (batch,), device=device, generator=generator) * 2 - 1
        return Maps(move(self.motion, amount, height, width))

    def apply(self, x: Tensor, parameters: Maps) -> Tensor:
        """Move images: float [B, C, H, W] in [0, 1] -> the same."""
        height, width = x.shape[2:]
        # Pixels are squares; their centres have coordinates .5, 1.5, ...
        rows = torch.arange(height, device=x.device)[:, None] + 0.5
        columns = torch.arange(width, device=x.device) + 0.5
        maps = parameters.matrices.to(x.device)[..., None, None]
        across, down = (maps[:, :, 0] * columns + maps[:, :, 1] * rows + maps[:, :, 2]).unbind(1)  # each [B, H, W]
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        grid = torch.stack((2 * across / width - 1, 2 * down / height - 1), dim=-1)
        moved = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return (moved * inside[:, None]).to(x.dtype)


def move(motion: Motion, amount: Tensor, height: int, width: int) -> Tensor:
    """Write motions of images as maps.

    Args:
        motion: what to do.
        amount: for each image, [B]: degrees against the clock, pixels, or pixels per pixel.
        height: of the images.
        width: of the images.

    Returns:
        Maps from the coordinates of the result to those of the image, [B, 2, 3].
    """
    maps = torch.eye(2, 3, device=amount.device).repeat(len(amount), 1, 1)
    if motion == "rotate":
        cosine, sine = (amount * (math.pi / 180)).cos(), (amount * (math.pi / 180)).sin()
        maps[:, 0, 0] = maps[:, 1, 1] = cosine
        maps[:, 0, 1], maps[:, 1, 0] = -sine, sine
        maps[:, 0, 2] = width / 2 * (1 - cosine) + height / 2 * sine
        maps[:, 1, 2] = height / 2 * (1 - cosine) - width / 2 * sine
    else:
        row = 0 if motion.endswith("x") else 1
        maps[:, row, 1 - row if motion.startswith("shear") else 2] = amount
    return maps


class Levels(NamedTuple):
    """A number of 8-bit levels for each image, float32 [B]."""

    levels: Tensor


def in_levels(x: Tensor) -> Tensor:
    """Images as 8-bit levels, 0 to 255, float."""
    return (x.float() * 255).round()


class Posterize(Primitive[Levels]):
    """Keep the leading bits of each image's 8-bit levels: 4, or less at high severities."""

    def __init__(self, severity: float) -> None:
        self.severity = severity

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Levels:
        """Draw the distance of the levels that are left."""
        return Levels(2 ** (4 + draw_strength(self.severity, 4, shape[0], device, generator).trunc()))

    def apply(self, x: Tensor, parameters: Levels) -> Tensor:
        """Posterize images: float [B, C, H, W] in [0, 1] -> the same."""
        step = parameters.levels.to(x.device)[:, None, None, None]
        return ((in_levels(x) / step).floor() * step / 255).to(x.dtype)


class Solarize(Primitive[Levels]):
    """Invert what is bright."""

    def __init__(self, severity: float) -> None:
        self.severity = severity

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Levels:
        """Draw the levels from which on pixels are inverted."""
        return Levels(256 - draw_strength(self.severity, 256, shape[0], device, generator).trunc())

    def apply(self, x: Tensor, parameters: Levels) -> Tensor:
        """Solarize images: float [B, C, H, W] in [0, 1] -> the same."""
        return torch.where(in_levels(x) >= parameters.levels.to(x.device)[:, None, None, None], 1 - x, x)


class AutoContrast(Primitive[tuple[()]]):
    """Spread each channel over [0, 1]; a channel of one value stays."""

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> tuple[()]:
        """Draw nothing."""
        return ()

    def apply(self, x: Tensor, parameters: tuple[()]) -> Tensor:
        """Spread images: float [B, C, H, W] in [0, 1] -> the same."""
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.where(high > low, (x - low) / (high - low), x)


class Equalize(Primitive[tuple[()]]):
    """Spread each channel so that all its 8-bit levels are equally frequent."""

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> tuple[()]:
        """Draw nothing."""
        return ()

    def apply(self, x: Tensor, parameters: tuple[()]) -> Tensor:
        """Equalize images: float [B, C, H, W] in [0, 1] -> the same."""
        # Places in a table: what is no level must not lead out of it.
        levels = in_levels(x).nan_to_num_().clamp_(0, 255).long().flatten(2)
        counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
        counts.scatter_add_(2, levels, torch.ones_like(levels))
        below = counts.cumsum(2) - counts  # how many pixels are darker than each level
        # Pillow's table: the pixels under the brightest level, in 255 equal parts; of too few nothing is changed.
        step = below.gather(2, levels.amax(2, keepdim=True)) // 255
        table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
        equalized = torch.where(step > 0, table, torch.arange(256, device=x.device)).gather(2, levels)
        return torch.where(x.isnan(), x, (equalized.view(x.shape) / 255).to(x.dtype))

"""Random smooth maps of colours, the colour primitive of PRIME.

Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "PRIME: a few primitives can boost robustness to common
corruptions", ECCV 2022, https://arxiv.org/abs/2112.13547.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pl_robust._number import check_count, check_finite
from pl_robust.transforms._primitive import Primitive, in_float32

_PER_PERIOD = 16
"""Points of the table in the shortest period; cubic interpolation between them is good to 6e-5 of its amplitude."""


class ColorParameters(NamedTuple):
    """Coefficients of the sines, float32 [B, C, cut]: zero where a frequency takes no part."""

    coefficients: Tensor


class RandomSmoothColor(Primitive[ColorParameters]):
    r"""Map the values c of each channel to :math:`c + \sum_k b_k \sin(\pi k c)`, and clip to [0, 1].

    For each image a strength T is uniform in [0, ``max_strength``], and a highest frequency K in 1 .. ``cut``; for each
    of its channels :math:`b_k \sim \mathcal{N}(0, T)`, the variance. With a ``band`` the frequencies start at one that
    is uniform in 1 .. K and are at most so many, up to K. The released code draws T and K once for the whole batch.

    The sum is looked up in a table of each channel and interpolated by cubics: good to 1e-4 of the strength.

    Args:
        cut: largest frequency, 100 (CIFAR) or 500 (ImageNet).
        max_strength: largest variance T of a coefficient, 0.01 (CIFAR) or 0.05 (ImageNet). 0 is the identity.
        band: largest number of frequencies; None means all up to K (CIFAR), 20 is that of ImageNet.

    Raises:
        TypeError: if ``cut`` or ``band`` is no integer, or ``max_strength`` no number.
        ValueError: if one of them is less than 1, or ``max_strength`` negative or not finite.
    """

    def __init__(self, cut: int = 100, max_strength: float = 0.01, band: int | None = None) -> None:
        check_count(cut, "cut")
        if band is not None:
            check_count(band, "band")
        if check_finite(max_strength, "max_strength") < 0:
            raise ValueError(f"`max_strength` must be finite and at least 0, got {max_strength!r}")
        self.cut = cut
        self.max_strength = max_strength
        self.band = band

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> ColorParameters:
        """Draw coefficients for each channel of each image."""
        batch, channels = shape[:2]
        uniform = torch.rand(3, batch, 1, 1, device=device, generator=generator)
        strength = self.max_strength * uniform[0]
        highest = 1 + (uniform[1] * self.cut).floor()
        lowest = torch.ones_like(highest)
        if self.band is not None:
            lowest = 1 + (uniform[2] * highest).floor()
            highest = torch.minimum(highest, lowest + self.band - 1)
        frequencies = torch.arange(1, self.cut + 1, device=device)
        takes_part = (frequencies >= lowest) & (frequencies <= highest)
        normal = torch.randn(batch, channels, self.cut, device=device, generator=generator)
        return ColorParameters(normal * strength.sqrt() * takes_part)

    def apply(self, x: Tensor, parameters: ColorParameters) -> Tensor:
        """Map the colours of images: float [B, C, H, W] in [0, 1] -> the same."""
        with in_float32(x):
            values = x.float().flatten(2)
            intervals = self.cut * _PER_PERIOD // 2
            sines, slopes = _tables(self.cut, intervals, x.device)
            coefficients = parameters.coefficients.to(x.device)
            height, slope = coefficients @ sines, coefficients @ slopes
            s = values.clamp(0, 1).mul_(intervals)
            left = s.floor().clamp_(max=intervals - 1)
            s -= left
            index = left.nan_to_num_().long()  # of NaN any place will do: `s` and so the result stay NaN
            del left
            # Cubic Hermite interpolation in Horner's form, slopes per interval; in place, to save memory.
            added, d0 = height.gather(2, index), slope.gather(2, index)
            index += 1
            rise = height.gather(2, index).sub_(added)
            d1 = slope.gather(2, index)
            del index
            cubic = d0 + d1
            cubic.sub_(rise, alpha=2)
            square = rise.mul_(3).sub_(d0, alpha=2).sub_(d1)
            added += cubic.mul_(s).add_(square).mul_(s).add_(d0).mul_(s)
            return added.add_(values).clamp_(0, 1).view(x.shape).to(x.dtype)


@lru_cache(maxsize=8)  # a preset or two, on a device or two
def _tables(cut: int, intervals: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """sin(pi k c) and its derivative per interval at the table's points, each [cut, intervals + 1]."""
    with torch.inference_mode(False):
        frequencies = torch.arange(1, cut + 1).unsqueeze(1)
        # Reduced to one turn in integers, so that high frequencies are as exact as low ones.
        phases = (frequencies * torch.arange(intervals + 1)) % (2 * intervals)
        angles = phases.double() * (math.pi / intervals)
        step = frequencies * (math.pi / intervals)
        return angles.sin().to(device, torch.float32), (angles.cos() * step).to(device, torch.float32)

"""Random smooth deformations, the spatial primitive of PRIME.

Petrini, Favero, Geiger, Wyart, "Relative stability toward diffeomorphisms indicates performance in deep nets", NeurIPS
2021, https://arxiv.org/abs/2105.02468; Modas et al., "PRIME", ECCV 2022, https://arxiv.org/abs/2112.13547.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust._number import check_count, check_finite
from pl_robust.transforms._primitive import Primitive, in_float32

_LEAST_CUT = 2


class DiffeomorphismParameters(NamedTuple):
    """Displacement of each pixel in pixels, float32 [B, 2, H, W]: rows first, then columns."""

    displacement: Tensor


class RandomDiffeomorphism(Primitive[DiffeomorphismParameters]):
    r"""Deform each image by a field :math:`\sqrt{T} \sum_{ij} C_{ij} \sin(\pi i u) \sin(\pi j v)`, zero at the border.

    :math:`C_{ij} \sim \mathcal{N}(0, 1 / r^2)`, :math:`r^2 = i^2 + j^2`, for r < cut + 1/2; u and v run from 0 to 1
    over the pixels. For each image cut' is uniform in 3 .. ``max_cut``, cut = 2 + (cut' - 2) Beta(1/2, 1/2), rounded,
    and :math:`T = T_1 + (\max(T_1, T_2) - T_1)` Beta(1/2, 1/2), with :math:`T_1 = 1 / (\pi n^2 \log cut)`, half a
    pixel, and :math:`T_2 = 4 / (\pi^3 cut^2 \log cut)`, up to which the map is one to one; n is the larger side in
    pixels. Bilinear sampling, coordinates clamped to the image. The released code draws one field for the batch.

    Frequencies beyond those of the pixel grid are folded onto it, with their variance: the same field in distribution,
    for fewer numbers.

    Args:
        max_cut: largest cut, 100 (CIFAR) or 500 (ImageNet).
        strength: factor of the displacement; 1 as published, 0 is the identity.

    Raises:
        TypeError: if ``max_cut`` is no integer, or ``strength`` no number.
        ValueError: if ``max_cut`` is less than 3, or ``strength`` negative or not finite; in use, if an image is less
            than 3 pixels high or wide, of which none lies inside the border.
    """

    def __init__(self, max_cut: int = 100, strength: float = 1.0) -> None:
        check_count(max_cut, "max_cut", least=_LEAST_CUT + 1)
        if check_finite(strength, "strength") < 0:
            raise ValueError(f"`strength` must be finite and at least 0, got {strength!r}")
        self.max_cut = max_cut
        self.strength = strength

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> DiffeomorphismParameters:
        """Draw a displacement field for each image."""
        batch, (height, width) = shape[0], shape[2:]
        if min(height, width) < 3:
            raise ValueError(f"images must be at least 3x3 to be deformed inside their border, got {height}x{width}")
        uniform = torch.rand(3, batch, device=device, generator=generator)
        at_most = 3 + (uniform[0] * (self.max_cut - 2)).floor()
        cut = (_LEAST_CUT + (at_most - _LEAST_CUT) * _arcsine(uniform[1])).round()
        side = max(height, width)
        lowest = 1 / (math.pi * side**2 * cut.log())
        highest = torch.maximum(lowest, 4 / (math.pi**3 * cut**2 * cut.log()))
        temperature = lowest + (highest - lowest) * _arcsine(uniform[2])
        variance = self._variance(cut, height, width)
        normal = torch.randn(batch, 2, height - 2, width - 2, device=device, generator=generator)
        coefficients = normal * (variance * temperature[:, None, None]).sqrt()[:, None]
        field = _sines(height, normal.device) @ coefficients @ _sines(width, normal.device).mT
        return DiffeomorphismParameters(self.strength * side * field)

    def _variance(self, cut: Tensor, height: int, width: int) -> Tensor:
        """Variance of the coefficients on the grid's own frequencies, T = 1: [B, H - 2, W - 2]."""
        frequencies = torch.arange(1, self.max_cut + 1, device=cut.device, dtype=torch.float32)
        squares = frequencies[:, None] ** 2 + frequencies**2
        kept = torch.where(squares < ((cut + 0.5) ** 2)[:, None, None], 1 / squares, 0.0)
        vertical, horizontal = (_folding(size, self.max_cut, cut.device) for size in (height, width))
        return vertical @ kept @ horizontal.mT

    def apply(self, x: Tensor, parameters: DiffeomorphismParameters) -> Tensor:
        """Deform images: float [B, C, H, W] in [0, 1] -> the same."""
        height, width = x.shape[2:]
        with in_float32(x):
            shift = parameters.displacement.to(x.device)
            rows = torch.arange(height, device=x.device, dtype=torch.float32)[:, None] + shift[:, 0]
            columns = torch.arange(width, device=x.device, dtype=torch.float32) + shift[:, 1]
            grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=3)
            sampled = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
            return sampled.clamp_(0, 1).to(x.dtype)


def _arcsine(uniform: Tensor) -> Tensor:
    """Beta(1/2, 1/2) from uniform numbers, by the inverse of its distribution function."""
    return torch.sin(uniform * (math.pi / 2)) ** 2


@lru_cache(maxsize=16)
def _sines(size: int, device: torch.device) -> Tensor:
    """sin(pi s p / (size - 1)) at the pixels p for the frequencies s inside: [size, size - 2]."""
    with torch.inference_mode(False):
        phases = torch.outer(torch.arange(size), torch.arange(1, size - 1)) % (2 * (size - 1))
        return (phases.double() * (math.pi / (size - 1))).sin().to(device, torch.float32)


@lru_cache(maxsize=16)
def _folding(size: int, max_cut: int, device: torch.device) -> Tensor:
    """Which frequencies 1 .. max_cut look like which of the grid's: 0 or 1, [size - 2, max_cut].

    On the grid frequency i is that of i modulo 2 (size - 1), with its sign turned in the second half of the period; a
    normal coefficient does not mind the sign. Multiples of size - 1 are zero at every pixel.
    """
    with torch.inference_mode(False):
        period = 2 * (size - 1)
        rest = torch.arange(1, max_cut + 1) % period
        alias = torch.minimum(rest, period - rest)
        return (alias == torch.arange(1, size - 1)[:, None]).to(device, torch.float32)

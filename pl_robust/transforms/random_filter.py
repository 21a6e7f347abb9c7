"""Random 3x3 filters, the spectral primitive of PRIME.

Modas, Rade, Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, "PRIME: a few primitives can boost robustness to common
corruptions", ECCV 2022, https://arxiv.org/abs/2112.13547.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_robust._number import check_count, check_finite
from pl_robust.transforms._primitive import Primitive, in_float32


class FilterParameters(NamedTuple):
    """One kernel for each image, float32 [B, k, k]."""

    kernels: Tensor


class RandomFilter(Primitive[FilterParameters]):
    r"""Convolve each image with :math:`\delta + \sigma\,\mathcal{N}(0, I)`, the same kernel in all of its channels.

    :math:`\sigma` is uniform in [0, ``sigma``], for each image. Borders are padded with zeros, the result is clipped to
    [0, 1]. The released code puts :math:`\delta` into the kernel's corner, which shifts images by one pixel, and draws
    one :math:`\sigma` for the whole batch.

    Args:
        sigma: largest strength of the noise in the kernel; 4 as published. 0 is the identity.
        kernel_size: side of the kernel in pixels, odd.

    Raises:
        TypeError: if ``sigma`` is no number, or ``kernel_size`` no integer.
        ValueError: if ``sigma`` is negative or not finite, or ``kernel_size`` not a positive odd integer.
    """

    def __init__(self, sigma: float = 4.0, kernel_size: int = 3) -> None:
        if check_finite(sigma, "sigma") < 0:
            raise ValueError(f"`sigma` must be finite and at least 0, got {sigma!r}")
        check_count(kernel_size, "kernel_size")
        if kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be a positive odd integer, so that it has a centre, got {kernel_size!r}"
            )
        self.sigma = sigma
        self.kernel_size = kernel_size

    def draw(
        self, shape: torch.Size, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> FilterParameters:
        """Draw a kernel for each image."""
        side = self.kernel_size
        sigma = self.sigma * torch.rand(shape[0], 1, 1, device=device, generator=generator)
        kernels = sigma * torch.randn(shape[0], side, side, device=device, generator=generator)
        kernels[:, side // 2, side // 2] += 1
        return FilterParameters(kernels)

    def apply(self, x: Tensor, parameters: FilterParameters) -> Tensor:
        """Filter images: float [B, C, H, W] in [0, 1] -> the same."""
        batch, channels, height, width = x.shape
        if batch == 0:
            return x.clone()
        with in_float32(x):
            weight = parameters.kernels.to(x.device).repeat_interleave(channels, 0).unsqueeze(1)
            flat = x.float().reshape(1, batch * channels, height, width)
            # One group for each channel of each image: all kernels in one convolution.
            filtered = F.conv2d(flat, weight, padding=self.kernel_size // 2, groups=batch * channels)
            return filtered.view(x.shape).clamp_(0, 1).to(x.dtype)

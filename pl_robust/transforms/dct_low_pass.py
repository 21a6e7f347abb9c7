"""Low-pass filter of images in the discrete cosine transform.

Ortiz-Jimenez, de Jorge, Sanyal, Bibi, Dokania, Frossard, Rogez, Torr, "Catastrophic overfitting can be induced with
discriminative non-robust features", TMLR 2023, https://arxiv.org/abs/2206.08242: without the high frequencies of
CIFAR-10, FGSM adversarial training keeps its robustness for longer.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from pl_robust._number import check_count


def dct_low_pass(x: Tensor, bandwidth: int | tuple[int, int]) -> Tensor:
    r"""Keep the low frequencies of images, in rows and in columns: :math:`P_h x P_w`, :math:`P = C_b^T C_b`.

    :math:`C_b` has the first ``bandwidth`` rows of the orthonormal DCT-II; of the image's coefficients (u, v) those
    with u < bandwidth and v < bandwidth stay. This is an orthogonal projection: linear, self-adjoint, and the same when
    done twice. The released code masks channel and height instead, and leaves the horizontal frequencies in.

    The result is NOT clipped: it overshoots at edges (Gibbs) and leaves [0, 1]. An attack that clips to [0, 1] would
    put frequencies back; give it ``bounds=None``.

    Args:
        x: float [..., H, W]; any number of leading dimensions, any batch size.
        bandwidth: number of frequencies kept, or one number each for (height, width). That of the paper is 16, on
            32x32 images.

    Returns:
        A new tensor with the shape, dtype and device of ``x``, differentiable with respect to it. Computed in float32
        or better, also under autocast; ``torch.set_float32_matmul_precision`` holds here as elsewhere.

    Raises:
        TypeError: if ``x`` is not float, or ``bandwidth`` not an integer.
        ValueError: if ``x`` is no image, or ``bandwidth`` less than 1 or larger than the image.

    Example:
        >>> x = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]]])
        >>> dct_low_pass(x, bandwidth=1).flatten().round(decimals=4)  # the mean is left
        tensor([2., 2., 2., 2.])
    """
    rows, columns = _check_bandwidth(bandwidth)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"`x` must be float [..., H, W], got {got}; turn the images into floats first")
    if x.ndim < 2:
        raise ValueError(f"`x` must be float [..., H, W], got shape {list(x.shape)}")
    height, width = x.shape[-2:]
    if rows > height or columns > width:
        raise ValueError(
            f"`bandwidth` must be at most the size of the images, {height}x{width}, got {bandwidth!r}; "
            "one as large as the size keeps every frequency"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    # torch.compile makes the matrices part of its graph and warns of a cache in between.
    projector = _projector.__wrapped__ if torch.compiler.is_compiling() else _projector
    with torch.autocast(x.device.type, enabled=False):
        vertical = projector(height, rows, dtype, x.device)
        horizontal = projector(width, columns, dtype, x.device)
        return (vertical @ (x.to(dtype) @ horizontal)).to(x.dtype)


class DCTLowPass(nn.Module):
    """``dct_low_pass`` as a layer without parameters, which may also stand before a network in ``nn.Sequential``.

    Args:
        bandwidth: as in ``dct_low_pass``.

    Raises:
        TypeError: if ``bandwidth`` is not an integer or two.
        ValueError: if it is less than 1; when called, if it is larger than the images.
    """

    def __init__(self, bandwidth: int | tuple[int, int]) -> None:
        super().__init__()
        _check_bandwidth(bandwidth)
        self.bandwidth = bandwidth

    def forward(self, x: Tensor) -> Tensor:
        """Filter images: float [..., H, W] -> the same shape and dtype."""
        return dct_low_pass(x, self.bandwidth)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"bandwidth={self.bandwidth}"


def _check_bandwidth(bandwidth: int | tuple[int, int]) -> tuple[int, int]:
    """Give (height, width), each a positive integer."""
    pair = tuple(bandwidth) if isinstance(bandwidth, tuple | list) else (bandwidth, bandwidth)
    if len(pair) != 2:
        raise ValueError(f"`bandwidth` must be an integer or two of them (height, width), got {bandwidth!r}")
    for number in pair:
        check_count(number, "bandwidth")
    return pair


@lru_cache(maxsize=32)  # a few sizes, dtypes and devices are in use at a time; the 33rd puts out the oldest
def _projector(size: int, bandwidth: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Compute P = C_b^T C_b, [size, size]: in float64, then rounded once.

    The angle pi (2i + 1) u / 2n is reduced to one turn in integers, so that high frequencies are as exact as low ones.
    """
    with torch.inference_mode(False):  # one made inside would be refused by autograd ever after
        positions = torch.arange(size, device="cpu")
        phases = torch.outer(torch.arange(bandwidth, device="cpu"), 2 * positions + 1) % (4 * size)
        cosines: Tensor = torch.cos(phases.double() * (torch.pi / (2 * size))) * (2 / size) ** 0.5
        cosines[0] = size**-0.5
        return (cosines.T @ cosines).to(device, dtype)

"""Carriers: one image of ±1 per class, which a linear classifier reads without error.

Ortiz-Jimenez, de Jorge, Sanyal, Bibi, Dokania, Frossard, Rogez, Torr, "Catastrophic overfitting can be induced with
discriminative non-robust features", TMLR 2023, https://arxiv.org/abs/2206.08242.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pl_robust._number import check_count

# The frequencies (row, column) of the paper's five carriers on CIFAR-10, in its order.
_PUBLISHED = ((0, 1), (1, 0), (1, 1), (2, 1), (1, 2))


def dct_carrier(num_classes: int = 10, size: int | tuple[int, int] = 32) -> Tensor:
    """Make one carrier per class: the sign of one 2-D DCT-II basis image, or of its negative.

    The first F = ceil(num_classes / 2) classes take F frequencies, and class F + i takes the negative of class i. The
    frequencies are the paper's five, then the others in zig-zag order, without (0, 0). A frequency whose basis image
    is exactly zero somewhere on this grid has no sign there and is left out; on 28x28, for example, (0, 4). For ten
    classes on 32x32 this is the published set: five mutually orthogonal images and their negatives, of rank 5.

    The released builder for other numbers of classes sums whole rows of frequencies, which makes its first two
    carriers identical; here each carrier has one frequency, and all of them differ.

    Args:
        num_classes: number of carriers.
        size: side of the images in pixels, or (height, width).

    Returns:
        float32 [num_classes, 1, H, W] with values -1 and +1. It broadcasts over channels: ``x + beta * V[y]``.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is not positive, or the size has too few frequencies for ``num_classes``.

    Example:
        >>> dct_carrier(num_classes=2, size=2)[:, 0]
        tensor([[[ 1., -1.],
                 [ 1., -1.]],
        <BLANKLINE>
                [[-1.,  1.],
                 [-1.,  1.]]])
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"`size` must be a positive integer or two of them (height, width), got {size!r}")
    for side in sides:
        check_count(side, "size")
    check_count(num_classes, "num_classes")
    height, width = sides
    rows, columns = _signs(height), _signs(width)
    usable = [frequency for frequency in _order(height, width) if frequency[0] in rows and frequency[1] in columns]
    count = (num_classes + 1) // 2
    if count > len(usable):
        raise ValueError(
            f"`num_classes` must be at most {2 * len(usable)} for images of {height}x{width}, got {num_classes}; "
            "a larger `size` offers more carriers"
        )
    carriers = torch.stack([torch.outer(rows[u], columns[v]) for u, v in usable[:count]])
    return torch.cat([carriers, -carriers[: num_classes - count]]).unsqueeze(1)


def _signs(n: int) -> dict[int, Tensor]:
    """Signs of cos(pi (2i + 1) u / 2n), i = 0 .. n - 1, for each frequency u that has no zero among them.

    In integers, because the cosine of a floating-point angle is noise where it should vanish: with m = (2i + 1) u
    modulo 4n the angle is pi m / 2n; the cosine is zero at m = n and 3n, and negative between them. Frequency u changes
    sign exactly u times and starts positive, hence all carriers differ.
    """
    phases = torch.outer(torch.arange(n), 2 * torch.arange(n) + 1) % (4 * n)
    signs = torch.where((phases > n) & (phases < 3 * n), -1.0, 1.0)
    usable = ((phases != n) & (phases != 3 * n)).all(dim=1)
    return {u: signs[u] for u in range(n) if usable[u]}


def _order(height: int, width: int) -> list[tuple[int, int]]:
    """All frequencies but (0, 0): the published five where they exist, then JPEG's zig-zag."""
    published = [(u, v) for u, v in _PUBLISHED if u < height and v < width]
    # Along a diagonal u + v the zig-zag runs downwards if it is odd, upwards if it is even.
    zigzag = sorted(
        ((u, v) for u in range(height) for v in range(width)),
        key=lambda f: (f[0] + f[1], f[0] if (f[0] + f[1]) % 2 else f[1]),
    )
    return published + [frequency for frequency in zigzag if frequency not in published and frequency != (0, 0)]

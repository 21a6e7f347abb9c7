from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.fft import idctn

from pl_robust.transforms import dct_carrier

PUBLISHED = [(0, 1), (1, 0), (1, 1), (2, 1), (1, 2)]


def _basis(frequency: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    coefficients = np.zeros(size)
    coefficients[frequency] = 1.0
    return np.asarray(idctn(coefficients, norm="ortho"))


def test_published_set_against_scipy() -> None:
    carriers = dct_carrier(10, 32)
    assert carriers.shape == (10, 1, 32, 32)
    assert carriers.dtype == torch.float32
    for index, frequency in enumerate(PUBLISHED):
        expected = torch.from_numpy(np.sign(_basis(frequency, (32, 32)))).float()
        assert torch.equal(carriers[index, 0], expected)
        assert torch.equal(carriers[index + 5, 0], -expected)


def test_published_five_are_orthogonal_and_of_rank_five() -> None:
    flat = dct_carrier().flatten(1).double()
    assert torch.equal(flat[:5] @ flat[:5].T, 1024 * torch.eye(5, dtype=torch.float64))
    assert torch.linalg.matrix_rank(flat) == 5


def test_a_linear_classifier_reads_the_feature_without_error() -> None:
    x, y = torch.rand(500, 3, 32, 32), torch.arange(500) % 10
    carriers = dct_carrier().expand(-1, 3, -1, -1)
    injected = x - x.mean(dim=(1, 2, 3), keepdim=True) + 0.5 * carriers[y]
    assert torch.equal((injected.flatten(1) @ carriers.flatten(1).T).argmax(1), y)


@pytest.mark.parametrize(
    ("num_classes", "size"),
    [
        (10, 8),
        (10, 28),
        (10, 6),
        (10, 7),
        (100, 32),
        (1000, 32),
        (30, 224),
        (30, (28, 32)),
        (7, (1, 20)),
        (3, (5, 4)),
    ],
)
def test_carriers_are_signs_and_all_differ(num_classes: int, size: int | tuple[int, int]) -> None:
    carriers = dct_carrier(num_classes, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert carriers.shape == (num_classes, 1, height, width)
    assert torch.equal(carriers.abs(), torch.ones_like(carriers))
    assert len(torch.unique(carriers.flatten(1), dim=0)) == num_classes
    half = (num_classes + 1) // 2
    assert torch.equal(carriers[half:], -carriers[: num_classes - half])


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (6, 7), (28, 32), (9, 15)])
def test_frequencies_are_exactly_those_without_a_zero_in_zigzag_order(size: tuple[int, int]) -> None:
    height, width = size

    def has_zero(n: int, u: int) -> bool:  # cos(pi t) with t = (2i + 1) u / 2n vanishes where t is half an odd number
        angles = [Fraction((2 * i + 1) * u, 2 * n) for i in range(n)]
        return any(t.denominator == 2 for t in angles)

    zigzag: list[tuple[int, int]] = []
    u, v, up = 0, 0, True
    while len(zigzag) < height * width:  # walk as JPEG does, turning at the borders
        if u < height and v < width:
            zigzag.append((u, v))
        if up:
            u, v, up = (u - 1, v + 1, True) if u > 0 else (0, v + 1, False)
        else:
            u, v, up = (u + 1, v - 1, False) if v > 0 else (u + 1, 0, True)
    order = PUBLISHED + [f for f in zigzag[1:] if f not in PUBLISHED]
    usable = [(u, v) for u, v in order if not has_zero(height, u) and not has_zero(width, v)]
    carriers = dct_carrier(2 * len(usable), size)
    for carrier, frequency in zip(carriers[:, 0], usable, strict=False):
        basis = _basis(frequency, size)
        assert np.abs(basis).min() > 1e-6, frequency
        assert torch.equal(carrier, torch.from_numpy(np.sign(basis)).float()), frequency
    with pytest.raises(ValueError, match=f"at most {2 * len(usable)} for images of {height}x{width}, got"):
        dct_carrier(2 * len(usable) + 1, size)


def test_frequency_4_has_a_zero_on_28_pixels_that_floats_hide() -> None:
    # The reason for integers: scipy's basis image has noise of either sign where it should be zero.
    assert 0 < np.abs(_basis((0, 4), (28, 28))).min() < 1e-12
    signs = torch.from_numpy(np.sign(_basis((0, 4), (28, 28)))).float()
    assert not (dct_carrier(100, 28)[:, 0] == signs).flatten(1).all(1).any()


@pytest.mark.parametrize(("num_classes", "size"), [(0, 32), (10, 0), (10, (8, -1))])
def test_refuses_numbers(num_classes: int, size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got"):
        dct_carrier(num_classes, size)

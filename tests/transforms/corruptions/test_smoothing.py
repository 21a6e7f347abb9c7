from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from pl_robust.transforms._corruptions import cache
from pl_robust.transforms._corruptions.smoothing import Border, _bands, smooth

SCIPYS: dict[Border, str] = {"edge": "nearest", "mirror": "reflect"}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("border", ["edge", "mirror"])
@pytest.mark.parametrize(("sigma", "truncate"), [(0.4, 4.0), (1.0, 4.0), (2.24, 3.0), (6.0, 4.0), (12.8, 3.0)])
@pytest.mark.parametrize("shape", [(2, 3, 17, 70), (1, 1, 16, 16)])  # with kernels that are wider than the image
def test_it_is_scipys_gaussian_filter(shape: tuple[int, ...], sigma: float, truncate: float, border: Border) -> None:
    x = noise(*shape)
    y = smooth(x, sigma, truncate=truncate, border=border)
    sigmas = (0, 0, sigma, sigma)
    expected = ndimage.gaussian_filter(x.double().numpy(), sigmas, mode=SCIPYS[border], truncate=truncate)
    np.testing.assert_allclose(y, expected, atol=2e-7)


@pytest.mark.parametrize("border", ["edge", "mirror"])
def test_it_is_exact_in_whole_numbers(border: Border) -> None:
    """Sums in another order, without any rounding, give the same bits."""
    x, sigma = noise(2, 1, 33, 70) * 4, 2.0
    y = smooth(x, sigma, border=border)

    def matrix(size: int) -> np.ndarray:
        whole = np.zeros((size, size), dtype=np.int64)
        for start, first, last, weights in _bands(size, sigma, 8, border, torch.device("cpu")):
            whole[start : start + len(weights), first:last] = weights.long().numpy()
        assert (whole.sum(1) == 2**27).all()
        return whole

    steps = (x[:, 0].double() * 2**24).round().long().numpy()
    halfway = matrix(33) @ steps
    rounded = np.rint(halfway.astype(np.float64) / 2**27).astype(np.int64)
    assert (halfway.astype(np.float64).astype(np.int64) == halfway).all()
    result = rounded @ matrix(70).T
    np.testing.assert_array_equal(y[:, 0].numpy(), (result.astype(np.float64) / 2.0**51).astype(np.float32))


def test_a_constant_stays_what_it_is_to_the_bit() -> None:
    x = torch.tensor([0.0, 1.0, 77 / 255]).view(1, 3, 1, 1).expand(1, 3, 40, 50)
    for sigma in (0.4, 1.5, 6.0):
        y = smooth(x, sigma)
        assert torch.equal(y[:, :2], x[:, :2])
        assert (y[:, 2] - 77 / 255).abs().max() <= 2**-25


def test_no_smoothing_gives_a_copy() -> None:
    x = noise(1, 1, 16, 16)
    y = smooth(x, 0.05)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("numbers", [1, 3000, 2**30])
def test_the_size_of_the_pieces_moves_no_bit(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(7, 3, 31, 45)
    expected = smooth(x, 1.3)
    monkeypatch.setattr(cache, "_NUMBERS", numbers)
    assert torch.equal(smooth(x, 1.3), expected)


def test_what_inference_mode_left_in_the_tables_serves_later() -> None:
    x = noise(1, 1, 19, 23)
    with torch.inference_mode():
        expected = smooth(x, 1.7)
    x.requires_grad_()
    with torch.no_grad():
        assert torch.equal(smooth(x, 1.7), expected)

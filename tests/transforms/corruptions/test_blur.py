from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from pl_robust.transforms._corruptions import blur, cache
from pl_robust.transforms._corruptions.blur import (
    _draw_sources,
    defocus_blur,
    enlarge,
    gaussian_blur,
    glass_blur,
    zoom_blur,
)
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import _package
from tests.transforms.corruptions.weather import STREAM, assert_image_counts_alone

Array = npt.NDArray[Any]
SHAPES = [(2, 3, 24, 41), (1, 1, 16, 16)]


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def random(batch: int = 2) -> SampleRandom:
    return SampleRandom(torch.arange(batch), STREAM)


def rows_of(name: str) -> list[tuple[float, ...]]:
    return sorted({row for rows in TABLES[name].values() for row in rows})


def by_channel(x: Tensor, filtered: Any) -> Array:
    return np.stack([[filtered(channel) for channel in image] for image in x.double().numpy()])


def scikit_images_gaussian(image: Array, sigma: float) -> Array:
    """skimage.filters.gaussian of one channel [H, W], or of [H, W, C], as the oracle calls it."""
    smoothed: Array = _package()[1]["gaussian"](image, sigma, multichannel=image.ndim == 3)
    return smoothed


@pytest.mark.parametrize("row", rows_of("gaussian_blur"))
@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_blur_is_scikit_images(shape: tuple[int, ...], row: tuple[float]) -> None:
    x = images(*shape)
    expected = by_channel(x, lambda channel: scikit_images_gaussian(channel, row[0]))
    np.testing.assert_allclose(gaussian_blur(x, random(), *row), expected, atol=1e-6)


@pytest.mark.parametrize("row", rows_of("defocus_blur"))
@pytest.mark.parametrize("shape", SHAPES)
def test_defocus_blur_is_opencvs_filter(shape: tuple[int, ...], row: tuple[float, float]) -> None:
    radius, smoothing = row
    opencv = _package()[1]["cv2"]
    # On a table with room for the rim, unlike the published one, which ends at 8 or at the radius.
    line = np.arange(-13, 14)
    disk = (line**2 + line[:, None] ** 2 <= radius**2).astype(np.float64)
    side = 3 if radius <= 8 else 5
    kernel = opencv.GaussianBlur(disk / disk.sum(), ksize=(side, side), sigmaX=smoothing)
    x = images(*shape)
    y = defocus_blur(x, random(), *row)
    np.testing.assert_allclose(y, by_channel(x, lambda channel: opencv.filter2D(channel, -1, kernel)), atol=1e-6)
    published = _package()[1]["disk"](radius=radius, alias_blur=smoothing)
    if radius in (8, 10):
        assert 1.01 < published.sum() < 1.014
    else:
        expected = by_channel(x, lambda channel: opencv.filter2D(channel, -1, published))
        np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("row", rows_of("zoom_blur"))
@pytest.mark.parametrize("shape", SHAPES)
def test_zoom_blur_is_scipys_zoom(shape: tuple[int, ...], row: tuple[float, float]) -> None:
    x = images(*shape)

    def blurred(channel: Array) -> Array:
        factors = np.arange(1, *row)
        return (channel + sum(scipys_centre(channel, factor) for factor in factors)) / (len(factors) + 1)

    np.testing.assert_allclose(zoom_blur(x, random(), *row), by_channel(x, blurred), atol=2e-6)


def scipys_centre(channel: Array, factor: float) -> Array:
    height, width = channel.shape
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    large = ndimage.zoom(channel[top : top + rows, left : left + columns], factor, order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def test_the_factors_of_a_zoom_are_numpys_with_an_end_that_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: list[float] = []

    def note(x: Tensor, factor: float) -> Tensor:
        factors.append(factor)
        return x

    monkeypatch.setattr(blur, "enlarge", note)
    zoom_blur(torch.zeros(1, 1, 16, 16), random(1), 1.11, 0.01)
    np.testing.assert_allclose(factors, 1 + 0.01 * np.arange(1, 12))


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.5, 2.25, 4.5])
@pytest.mark.parametrize("shape", [(2, 3, 24, 41), (1, 1, 16, 16), (1, 1, 224, 33)])
def test_enlarging_is_scipys_zoom_of_the_centre(shape: tuple[int, ...], factor: float) -> None:
    x = images(*shape)
    expected = by_channel(x, lambda channel: scipys_centre(channel, factor))
    np.testing.assert_allclose(enlarge(x, factor), expected, atol=2e-5)


def offsets(draws: SampleRandom, reach: int, height: int, width: int) -> tuple[Array, Array]:
    """The rows and columns by which the pixels of a pass look away, in the order of the image."""
    choice = draws.integers(0, (2 * reach) ** 2, height - 2 * reach, width - 2 * reach).numpy()
    return choice // (2 * reach) - reach, choice % (2 * reach) - reach


def published_pass(image: Array, down: Array, right: Array, reach: int) -> None:
    """The published loop, word for word but for the random numbers: it swaps views, and so it does not swap."""
    x = image
    for h in range(x.shape[0] - reach, reach, -1):
        for w in range(x.shape[1] - reach, reach, -1):
            dy, dx = down[h - reach - 1, w - reach - 1], right[h - reach - 1, w - reach - 1]
            h_prime, w_prime = h + dy, w + dx
            x[h, w], x[h_prime, w_prime] = x[h_prime, w_prime], x[h, w]


@pytest.mark.parametrize("row", rows_of("glass_blur"))
@pytest.mark.parametrize(("height", "width"), [(21, 34), (16, 16)])
def test_glass_blur_is_the_published_loop(height: int, width: int, row: tuple[float, int, int]) -> None:
    sigma, reach, passes = row
    x = images(2, 3, height, width)
    y = glass_blur(x, random(), *row)
    draws = random()
    moves = [offsets(draws, reach, height, width) for _ in range(passes)]
    for number in range(2):
        image = scikit_images_gaussian(x[number].permute(1, 2, 0).double().numpy(), sigma)
        for down, right in moves:
            published_pass(image, down[number], right[number], reach)
        expected = scikit_images_gaussian(image, sigma)
        np.testing.assert_allclose(y[number].permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_values_wander_as_far_as_in_the_published_loop(reach: int) -> None:
    side = 96
    source = _draw_sources(random(1), reach, side, side)[0].numpy()
    image = np.stack(np.divmod(np.arange(side**2), side), 1).reshape(side, side, 2)
    down, right = offsets(random(1), reach, side, side)
    published_pass(image, down[0], right[0], reach)
    np.testing.assert_array_equal(source.reshape(side, side), image[..., 0] * side + image[..., 1])
    wandered = np.abs(image - np.moveaxis(np.mgrid[:side, :side], 0, 2)).max()
    assert (wandered > reach) == (reach > 1)


def test_each_pixel_nearby_is_as_likely_and_the_border_stays() -> None:
    height, width = 50, 61
    source = _draw_sources(random(40), 1, height, width).view(40, height, width)
    away = torch.arange(height * width).view(height, width) - source
    border = torch.ones(height, width, dtype=torch.bool)
    border[2:, 2:] = False
    assert (away[:, border] == 0).all()
    inner = away[:, ~border]  # with reach 1 nobody's source was moved before
    counts = [int((inner == step).sum()) for step in (0, 1, width, width + 1)]
    assert sum(counts) == inner.numel()
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("table", "channels"), [("cifar", 1), ("imagenet", 3)])
def test_glass_blur_of_an_image_counts_alone(channels: int, table: TableName) -> None:
    assert_image_counts_alone("glass_blur", glass_blur, table, channels)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_blurs_of_an_image_count_alone(channels: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    effect = getattr(blur, name)
    x = images(7, channels, 37, 61)
    before = x.clone()
    for row in rows_of(name):
        whole = effect(x, random(7), *row)
        assert torch.equal(x, before)
        for one in (0, 6):
            assert torch.equal(effect(x[one : one + 1], random(1), *row)[0], whole[one])
        order = [6, 2, 3, 0]
        assert torch.equal(effect(x[order], random(4), *row), whole[order])
        torch.set_num_threads(2)
        try:
            assert torch.equal(effect(x, random(7), *row), whole)
        finally:
            torch.set_num_threads(1)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_NUMBERS", 1)
            assert torch.equal(effect(x, random(7), *row), whole)

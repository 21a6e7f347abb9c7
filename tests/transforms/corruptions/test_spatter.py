from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from pl_robust.transforms._corruptions import spatter as module
from pl_robust.transforms._corruptions.spatter import spatter
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import oracle, psnr
from tests.transforms.corruptions.weather import (
    STREAM,
    Scripted,
    assert_image_counts_alone,
    batch_of,
    cut,
    levels_above,
)

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
LAYERS = [("imagenet", 0), ("imagenet", 1), ("imagenet", 2), ("cifar", 0), ("cifar", 1), ("cifar", 2)]


def liquids(table: TableName, severity: int, count: int = 4) -> list[Bytes]:
    """Layers of water as the oracle's cv2 functions get them."""
    mean, std, smoothing, threshold = TABLES["spatter"][table][severity][:4]
    rng = np.random.default_rng(severity)
    layers = (
        scipy.ndimage.gaussian_filter(rng.normal(mean, std, (75, 90)), smoothing, mode="nearest") for _ in range(count)
    )
    return [(np.minimum(np.where(layer < threshold, 0, layer), 1) * 255).astype(np.uint8) for layer in layers]


def last(images: Sequence[Array]) -> Tensor:
    """Stack images with the batch last: [H, W, B]."""
    return torch.tensor(np.stack(images, 2))


def assert_equal(ours: Tensor, theirs: Sequence[Array]) -> None:
    np.testing.assert_array_equal(ours.numpy(), np.stack(theirs, 2))


@pytest.mark.parametrize(("table", "severity"), LAYERS)
def test_edges_are_cv2s(table: TableName, severity: int) -> None:
    images = liquids(table, severity)
    ours = module._edges(last(images).short()).numpy() * 255
    theirs = np.stack([cv2.Canny(image, 50, 150) for image in images], 2)
    assert theirs.any()
    assert (ours != theirs).mean() < 5e-4
    assert not (ours > theirs).any()  # those that are missing lie at the end of a weak edge


def test_edges_of_unrelated_numbers_are_cv2s(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every angle and every tie, and the whole of the weak edges.
    monkeypatch.setattr(module, "_HYSTERESIS", 200)
    rng = np.random.default_rng(0)
    images: list[Array] = [rng.integers(0, high, (75, 90)).astype(np.uint8) for high in (4, 30, 60, 256)]
    images += [cv2.GaussianBlur(images[3], (5, 5), sigma) for sigma in (0.7, 1.0, 1.5)]
    ours = module._edges(last(images).short()).numpy() * 255
    theirs = np.stack([cv2.Canny(image, 50, 150) for image in images], 2)
    assert (ours != theirs).mean() < 1e-3  # 12 / 29 is not quite the tangent of 22.5 degrees


def test_distance_is_cv2s() -> None:
    rng = np.random.default_rng(0)
    edges = [(rng.random((75, 90)) < share).astype(np.uint8) for share in (0.3, 0.02, 0.001, 0.0)]
    edges[2][0, 0] = 1
    ours = module._distance(last(edges)).numpy() / 5
    for image, edge in enumerate(edges):
        theirs = np.minimum(cv2.distanceTransform(1 - edge, cv2.DIST_L2, 5), 20)
        np.testing.assert_allclose(ours[..., image], theirs, atol=0.04)  # a knight's step: 2.2 and 2.1969
    assert (ours[..., 3] == 20).all()


def test_histograms_are_equalized_and_filtered_as_by_cv2() -> None:
    rng = np.random.default_rng(0)
    levels: list[Array] = [rng.binomial(20, p, (75, 90)).astype(np.uint8) for p in (0.02, 0.3, 0.9)]
    levels += [rng.choice([3, 7], (75, 90)).astype(np.uint8), np.full((75, 90), 20, np.uint8)]
    equal: list[Array] = [cv2.equalizeHist(image) for image in levels]
    assert_equal(module._equalize(last(levels)), equal)
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    embossed: list[Array] = [cv2.filter2D(image, cv2.CV_8U, kernel) for image in equal]
    assert_equal(module._emboss(last(equal).short()), embossed)
    mean = (module._sum_of_nine(last(embossed).short()).float() / 9).round().byte()
    assert_equal(mean, [cv2.blur(image, (3, 3)) for image in embossed])


def relief(liquid: Bytes) -> npt.NDArray[np.float32]:
    """The released chain, by the oracle's own functions."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    water = liquid * cv2.blur(cv2.filter2D(distance, cv2.CV_8U, kernel), (3, 3)).astype(np.float32)
    result: npt.NDArray[np.float32] = water / water.max()
    return result


@pytest.mark.parametrize(("table", "severity"), LAYERS)
def test_water_is_the_released_chains(table: TableName, severity: int) -> None:
    images = liquids(table, severity)
    ours = module._water(torch.tensor(np.stack(images)) / 255 + 1e-4)
    theirs = np.stack([relief(image) for image in images])
    assert ours.amax((1, 2)).tolist() == [1.0] * len(images)
    # The knight's step moves the rounding of a few distances, and with it a level of the histogram.
    assert np.abs(ours.numpy() - theirs).mean() < 0.08 * theirs.mean()
    assert (ours.numpy() ** 2).mean() == pytest.approx((theirs**2).mean(), rel=0.08)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["square", "wide", "gray"])
def test_it_is_the_oracles_spatter_of_the_same_numbers(
    kind: str, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = cut(kind, severity)
    seeds = torch.tensor([severity])
    y = spatter(batch_of(image), SampleRandom(seeds, STREAM), *TABLES["spatter"]["imagenet"][severity - 1])
    normal = SampleRandom(seeds, STREAM).normal(*image.shape[:2])[0]
    Scripted(monkeypatch, uniform=normal, normal=normal)
    truth = oracle("spatter", image, severity, 0)
    difference = levels_above(y, truth)
    equal = ((difference > -0.01) & (difference < 1.01)).mean()
    if severity > 3:  # mud
        assert equal > 0.9999
    else:
        spattered = truth != image
        assert 0.01 < spattered.mean() < 0.6
        assert equal > 0.85
        assert np.abs(difference - 0.5)[spattered].mean() < 2
    rounded = ((y.clamp(0, 1) * 255).floor() / 255)[0].permute(1, 2, 0).view(truth.shape)
    assert psnr(batch_of(image)[0].permute(1, 2, 0).view(truth.shape), rounded) == pytest.approx(
        psnr(image, truth), abs=0.3
    )


def test_water_is_turquoise_and_mud_is_brown() -> None:
    random = [SampleRandom(torch.arange(2), STREAM) for _ in range(2)]
    water = spatter(torch.zeros(2, 3, 64, 64), random[0], 0.65, 0.3, 2, 0.68, 0.5, 0)
    torch.testing.assert_close(water.flatten(2).amax(2), torch.tensor([[175, 238, 238]] * 2) / 255 * 0.5)
    mud = spatter(torch.ones(2, 3, 64, 64), random[1], 0.65, 0.3, 1, 0.65, 1.5, 1)
    share = (1 - mud) / (1 - torch.tensor([63, 42, 20]) / 255)[:, None, None]
    torch.testing.assert_close(share[:, 1:], share[:, :1].expand(-1, 2, -1, -1), atol=1e-5, rtol=0)
    covered = share[share > 1e-5]
    assert covered.min() >= 0.8
    assert covered.max() <= 1.00001
    assert 0.01 < len(covered) / share.numel() < 0.5


@pytest.mark.parametrize("severity", [1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_without_a_drop_stays_what_it_is(severity: int, channels: int) -> None:
    x = torch.rand(2, channels, 20, 16)
    constants = (0.0, *TABLES["spatter"]["cifar"][severity - 1][1:])
    assert torch.equal(spatter(x, SampleRandom(torch.arange(2), 0), *constants), x)


def test_an_image_under_water_is_lit_as_a_whole() -> None:
    # One drop without an edge: a histogram of one level.
    liquid = torch.full((1, 20, 16), 0.9)
    expected = relief(np.full((20, 16), int(0.9 * 255), np.uint8))
    assert expected.min() == 1
    np.testing.assert_array_equal(module._water(liquid)[0], expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("table", ["cifar", "imagenet"])
def test_an_image_counts_alone(table: TableName, channels: int) -> None:
    assert_image_counts_alone("spatter", spatter, table, channels)

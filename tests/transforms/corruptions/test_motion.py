from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor

from pl_robust.transforms._corruptions import cache, motion
from pl_robust.transforms._corruptions.motion import blur_along, motion_blur
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import _package, oracle, photos
from tests.transforms.corruptions.weather import (
    STREAM,
    Scripted,
    assert_image_counts_alone,
    batch_of,
    levels_above,
)

Array = npt.NDArray[Any]
ANGLES = torch.tensor([-135.0, -90.0, -44.0, -31.1, 0.0, 17.3, 89.0, 160.0])


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def imagemagicks(channel: Array, radius: int, sigma: float, angle: float) -> Array:
    """ImageMagick's MotionBlurImage: pixel by pixel, whatever lies outside repeating the edge."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    right, down = (np.ceil(steps * part(np.deg2rad(angle)) - 0.5).astype(int) for part in (np.cos, np.sin))
    height, width = channel.shape
    out = np.zeros(channel.shape)
    for row in range(height):
        for column in range(width):
            values = channel[(row + down).clip(0, height - 1), (column + right).clip(0, width - 1)]
            out[row, column] = (values * weights).sum() / weights.sum()
    return out


# The last two trails are longer than the image, the first ends where its weights do.
@pytest.mark.parametrize(
    ("radius", "sigma", "height", "width"),
    [(10, 1.0, 30, 45), (10, 4.0, 30, 45), (20, 15.0, 16, 16), (15, 8.0, 40, 17)],
)
def test_it_is_imagemagicks_operator(radius: int, sigma: float, height: int, width: int) -> None:
    x = images(len(ANGLES), 2, height, width)
    y = blur_along(x, radius, sigma, ANGLES)
    for image, blurred, angle in zip(x.double().numpy(), y, ANGLES.tolist(), strict=True):
        expected = np.stack([imagemagicks(channel, radius, sigma, angle) for channel in image])
        np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_it_is_imagecorruptions_where_the_trail_is_shorter_than_the_image() -> None:
    x = images(len(ANGLES), 3, 50, 61)
    y = blur_along(x, 20, 15, ANGLES)
    for image, blurred, angle in zip(x.permute(0, 2, 3, 1).double().numpy(), y, ANGLES.tolist(), strict=True):
        expected = _package()[1]["_motion_blur"](image, 20, 15, angle)
        np.testing.assert_allclose(blurred.permute(1, 2, 0), expected, atol=1e-6)


def test_a_trail_longer_than_the_image_leaves_its_brightness() -> None:
    x = torch.full((1, 1, 16, 16), 0.5)
    for angle in (0.0, -30.0, 90.0):
        torch.testing.assert_close(blur_along(x, 20, 15, torch.tensor([angle])), x, atol=1e-6, rtol=0)
    darker = _package()[1]["_motion_blur"](x[0, 0].numpy(), 20, 15, 0.0)
    assert darker.max() < 0.45


# (row, column) by which the trail of a bright point goes.
@pytest.mark.parametrize(("angle", "down", "right"), [(0, 0, -1), (90, -1, 0), (-90, 1, 0), (180, 0, 1), (45, -1, -1)])
def test_the_trail_of_a_point_goes_where_the_docstring_says(angle: float, down: int, right: int) -> None:
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    y = blur_along(x, 5, 4, torch.tensor([float(angle)]))[0, 0]
    rows, columns = y.nonzero().T
    assert y[20, 20] > 0
    assert set(zip((rows - 20).tolist(), (columns - 20).tolist(), strict=True)) <= {
        (down * step, right * step) for step in range(11)
    }
    assert len(rows) >= 8


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_it_is_the_oracles_motion_blur_at_the_same_angle(severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photos(96)[severity]
    seeds = torch.tensor([severity])
    y = motion_blur(batch_of(image), SampleRandom(seeds, STREAM), *TABLES["motion_blur"]["imagenet"][severity - 1])
    Scripted(monkeypatch, uniform=SampleRandom(seeds, STREAM).uniform())
    difference = levels_above(y, oracle("motion_blur", image, severity, 0))
    assert difference.min() > -1e-3
    assert difference.max() < 1 + 1e-3


def test_angles_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    angles: list[Tensor] = []

    def note(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
        angles.append(angle)
        return x

    monkeypatch.setattr(motion, "blur_along", note)
    motion_blur(torch.zeros(2000, 1, 1, 1), SampleRandom(torch.arange(2000), STREAM), 10, 3)
    assert stats.kstest(angles[0].numpy(), stats.uniform(-45, 90).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("table", "channels"), [("cifar", 1), ("imagenet", 3)])
def test_an_image_counts_alone(channels: int, table: TableName) -> None:
    assert_image_counts_alone("motion_blur", motion_blur, table, channels)


@pytest.mark.parametrize("numbers", [1, 3000, 2**30])
def test_the_size_of_the_pieces_moves_no_bit(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(8, 3, 31, 45)
    expected = blur_along(x, 8, 2.5, ANGLES)
    monkeypatch.setattr(cache, "_NUMBERS", numbers)
    assert torch.equal(blur_along(x, 8, 2.5, ANGLES), expected)

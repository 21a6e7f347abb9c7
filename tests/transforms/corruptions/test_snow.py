from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from pl_robust.transforms._corruptions.snow import _noise, snow
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import oracle
from tests.transforms.corruptions.weather import (
    STREAM,
    Scripted,
    assert_image_counts_alone,
    batch_of,
    cut,
    levels_above,
)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["square", "wide", "gray"])
def test_it_is_the_oracles_snow_of_the_same_numbers(kind: str, severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sides that every factor of the table divides: the enlarged noise has the image's size.
    image = cut(kind, severity)
    constants = TABLES["snow"]["imagenet"][severity - 1]
    seeds = torch.tensor([severity])
    y = snow(batch_of(image), SampleRandom(seeds, STREAM), *constants)
    random = SampleRandom(seeds, STREAM)
    height, width = image.shape[:2]
    rows, columns = (round(side / constants[2]) for side in (height, width))
    noise = torch.zeros(height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    noise[top : top + rows, left : left + columns] = random.normal(rows, columns)[0]
    Scripted(monkeypatch, uniform=random.uniform(), normal=noise)
    difference = levels_above(y, oracle("snow", image, severity, 0))
    # Where the flakes' 8 bits round the other way, and for noise on the very threshold.
    assert ((difference > -0.01) & (difference < 1.01)).mean() > 0.999
    assert np.abs(difference - 0.5).max() < 4


@pytest.mark.parametrize(("height", "width", "zoom"), [(33, 47, 2.5), (100, 61, 4.5), (32, 32, 1.75), (40, 16, 1.0)])
def test_noise_is_enlarged_as_by_scipy(height: int, width: int, zoom: float) -> None:
    x = torch.zeros(2, 3, height, width)
    noise = _noise(x, SampleRandom(torch.arange(2), STREAM), 0.3, 0.5, zoom)
    coarse = SampleRandom(torch.arange(2), STREAM).normal(math.ceil(height / zoom), math.ceil(width / zoom))
    for one, source in zip(noise, coarse.double().numpy(), strict=True):
        large = scipy.ndimage.zoom(0.3 + 0.5 * source, zoom, order=1)
        top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        np.testing.assert_allclose(one[0], large[top : top + height, left : left + width], atol=1e-4)


def test_flakes_are_symmetric_and_whiten_what_is_beneath() -> None:
    y = snow(torch.zeros(2, 1, 48, 64), SampleRandom(torch.arange(2), 0), 0.1, 0.3, 3, 0.5, 10, 4, 0.8)
    flakes = y - 0.5 * (1 - 0.8)  # black becomes gray: 0 * 1.5 + 0.5 with what weight the image leaves
    torch.testing.assert_close(flakes, flakes.flip(2, 3), atol=1e-6, rtol=0)
    levels = flakes * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert 0.02 < (flakes > 0.05).float().mean() < 0.9
    # White has nothing to become, and is no darker: 0.2 * (2 - 1) is added.
    white = snow(torch.ones(1, 3, 16, 16), SampleRandom(torch.arange(1), 0), -9.0, 0.1, 3, 0.5, 10, 4, 0.8)
    torch.testing.assert_close(white, torch.full_like(white, 1.2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("table", ["cifar", "imagenet"])
def test_an_image_counts_alone(table: TableName, channels: int) -> None:
    assert_image_counts_alone("snow", snow, table, channels)

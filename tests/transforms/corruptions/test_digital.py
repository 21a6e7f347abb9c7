from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.color
import torch
from PIL import Image
from torch import Tensor

from pl_robust.transforms._corruptions import digital
from pl_robust.transforms._corruptions.tables import TABLES
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import Floats, Uint8, oracle, photos, to_batch

_color: Any = skimage.color  # has types in part
RANDOM = SampleRandom(torch.zeros(0, dtype=torch.int64), 0)  # nothing here draws


def noise(height: int, width: int) -> Uint8:
    """An image of unrelated values: harder on a codec or a hue than photos."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def in_levels(y: Tensor) -> Floats:
    return (y[0].clamp(0, 1).double() * 255).permute(1, 2, 0).numpy()


def through_hsv(image: Uint8, change: Callable[[Floats], Floats], channel: int) -> Floats:
    hsv = _color.rgb2hsv(image / 255)
    hsv[..., channel] = np.clip(change(hsv[..., channel]), 0, 1)
    truth: Floats = _color.hsv2rgb(hsv) * 255
    return truth


@pytest.mark.parametrize("image", [photos()[1], noise(61, 47)], ids=["photo", "noise"])
def test_brightness_and_saturation_are_those_of_hsv(image: Uint8) -> None:
    image = image.copy()
    image[0] = 0  # black and gray have no hue
    image[1] = 128
    x = to_batch([image])
    for shift in (0.05, 0.3, 0.5):
        truth = through_hsv(image, lambda value, shift=shift: value + shift, 2)  # type: ignore[misc]
        np.testing.assert_allclose(in_levels(digital.brightness(x, RANDOM, shift)), truth, atol=1e-3)
    for factor, shift in ((0.1, 0), (2.5, 0.2), (30, 0.2)):
        truth = through_hsv(image, lambda value, f=factor, s=shift: value * f + s, 1)  # type: ignore[misc]
        np.testing.assert_allclose(in_levels(digital.saturate(x, RANDOM, factor, shift)), truth, atol=1e-3)


def test_gray_images_are_brightened_and_not_saturated() -> None:
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(digital.brightness(x, RANDOM, 0.3), (x + 0.3).clamp(max=1))
    assert torch.equal(digital.saturate(x, RANDOM, 30, 0.2), x)


def test_contrast_moves_each_channel_towards_its_own_mean() -> None:
    x = torch.rand(3, 3, 20, 31) ** 2
    y = digital.contrast(x, RANDOM, 0.3)
    mean = x.double().mean((-2, -1), keepdim=True)
    torch.testing.assert_close(y.double(), mean + 0.3 * (x - mean), atol=1e-6, rtol=0)


def test_the_mean_of_a_large_gray_image_is_the_same_number_beside_others_and_with_more_threads() -> None:
    x = torch.rand(3, 1, 400, 501) ** 8
    means = digital.contrast(x, RANDOM, 0.0)[:, 0, 0, 0]
    torch.set_num_threads(2)
    try:
        assert torch.equal(digital.contrast(x[1:2], RANDOM, 0.0)[:, 0, 0, 0], means[1:2])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("share", sorted({row[0] for rows in TABLES["pixelate"].values() for row in rows}))
def test_pixelate_is_pils_box_and_nearest_at_every_size(share: float) -> None:
    for height in range(16, 225, 3):
        image = noise(height, 16 + (7 * height) % 97)
        small = tuple(int(side * share) for side in image.shape[1::-1])
        peer = Image.fromarray(image).resize(small, Image.Resampling.BOX)  # type: ignore[arg-type]
        truth = np.asarray(peer.resize(image.shape[1::-1], Image.Resampling.NEAREST), dtype=float)
        y = in_levels(digital.pixelate(to_batch([image]), RANDOM, share))
        assert np.abs(y - truth).max() < 1.001, image.shape  # PIL rounds twice on its way


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [80, 25, 7])
def test_jpeg_is_pils_to_the_bit(quality: int, channels: int) -> None:
    for image in (photos()[0], noise(61, 47)):
        image = image if channels == 3 else image[..., :1]
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
        truth = np.asarray(Image.open(file)).reshape(image.shape)
        y = digital.jpeg_compression(to_batch([image]), RANDOM, quality)
        np.testing.assert_array_equal(in_levels(y).round(), truth)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturate", "pixelate", "jpeg_compression"])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("gray", [False, True])
def test_they_are_the_oracles_but_for_its_truncation(name: str, severity: int, gray: bool) -> None:
    image = photos()[2][..., 1] if gray else photos()[2]
    x = to_batch([image[..., None] if gray else image])
    y = in_levels(getattr(digital, name)(x, RANDOM, *TABLES[name]["imagenet"][severity - 1])).squeeze()
    difference = y - oracle(name, image, severity, 0)
    low = -1.001 if name == "pixelate" else -0.001  # PIL rounds that one
    assert difference.min() >= low
    assert difference.max() <= 1.001

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pl_robust.transforms._corruptions.elastic import displace, elastic_transform, move_corners
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


def random(batch: int = 2) -> SampleRandom:
    return SampleRandom(torch.arange(batch), STREAM)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def sampled(image: Tensor, columns: Array, rows: Array, mode: str) -> Array:
    places = np.stack([rows, columns])
    return np.stack(
        [ndimage.map_coordinates(channel, places, order=1, mode=mode) for channel in image.double().numpy()]
    )


def opencvs_map(moves: Array, height: int, width: int) -> Array:
    """The matrix from the image to the result, 2 x 3, as published but for the centre of images that are not square."""
    centre, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = (centre + np.array([[reach, reach], [reach, -reach], [-reach, -reach]])).astype(np.float32)
    matrix: Array = _package()[1]["cv2"].getAffineTransform(corners, corners + moves.astype(np.float32))
    return matrix


@pytest.mark.parametrize("reach", [0.7, 50.0, 1000.0])  # beyond the image, and beyond its mirror images
@pytest.mark.parametrize("shape", [(2, 3, 24, 33), (2, 1, 16, 16)])
def test_displacing_is_scipys_map_coordinates(shape: tuple[int, ...], reach: float) -> None:
    x = images(*shape)
    shift = (images(shape[0], 2, *shape[2:]) - 0.5) * (2 * reach)
    y = displace(x, shift)
    rows, columns = np.mgrid[: shape[2], : shape[3]]
    for image, own, moved in zip(x, shift.double().numpy(), y, strict=True):
        expected = sampled(image, columns + own[0], rows + own[1], "reflect")
        np.testing.assert_allclose(moved, expected, atol=1e-5 * max(1, reach / 50))


def test_no_displacement_is_the_identity() -> None:
    x = images(2, 3, 32, 45)
    torch.testing.assert_close(displace(x, torch.zeros(2, 2, 32, 45)), x, atol=5e-6, rtol=0)
    torch.testing.assert_close(move_corners(x, torch.zeros(2, 3, 2)), x, atol=1e-5, rtol=0)
    assert torch.equal(elastic_transform(x, random(), 0, 0, 0), x)


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (4, 1, 24, 47), (4, 1, 60, 16)])
def test_moving_corners_is_opencvs_affine_map(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    height, width = shape[2:]
    moves = (images(4, 3, 2) - 0.5) * 0.16 * min(height, width)
    y = move_corners(x, moves)
    opencv = _package()[1]["cv2"]
    rows, columns = np.mgrid[:height, :width]
    for image, own, moved in zip(x, moves.double().numpy(), y, strict=True):
        matrix = opencvs_map(own, height, width)
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        from_column, from_row = (line[0] * columns + line[1] * rows + line[2] for line in back[:2])
        np.testing.assert_allclose(moved, sampled(image, from_column, from_row, "mirror"), atol=3e-5)
        warped = opencv.warpAffine(
            image.permute(1, 2, 0).numpy(), matrix, (width, height), borderMode=opencv.BORDER_REFLECT_101
        )
        # Older versions of OpenCV round places to 1/32 pixel.
        assert np.abs(moved.permute(1, 2, 0).numpy() - warped.reshape(height, width, -1)).max() < 0.05


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_it_is_the_oracles_of_the_same_numbers(severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photos(100)[severity]
    seeds = torch.tensor([severity])
    row = TABLES["elastic_transform"]["imagenet"][severity - 1]
    y = elastic_transform(batch_of(image), SampleRandom(seeds, STREAM), *row)
    Scripted(monkeypatch, uniform=SampleRandom(seeds, STREAM).uniform(2, 100, 100))
    difference = levels_above(y, oracle("elastic_transform", image, severity, 0))
    assert difference.min() > -0.02
    assert difference.max() < 1.02


@pytest.mark.parametrize("table", ["cifar", "tiny_imagenet"])
@pytest.mark.parametrize("severity", [1, 2, 5])
def test_it_is_the_published_one_of_the_same_numbers(table: TableName, severity: int) -> None:
    amplitude, smoothness, affine = TABLES["elastic_transform"][table][severity - 1]
    x = images(2, 3, 32, 40)
    y = elastic_transform(x, random(), amplitude, smoothness, affine)
    draws = random()
    moves = (draws.uniform(3, 2).double().numpy() * 2 - 1) * affine * 32
    noise = draws.uniform(2, 32, 40).double().numpy() * 2 - 1
    rows, columns = np.mgrid[:32, :40]
    for number in range(2):
        back = np.linalg.inv(np.vstack([opencvs_map(moves[number], 32, 40), [0, 0, 1]]))
        from_column, from_row = (line[0] * columns + line[1] * rows + line[2] for line in back[:2])
        image = torch.tensor(sampled(x[number], from_column, from_row, "mirror"))
        if amplitude:
            right, down = (
                ndimage.gaussian_filter(field, smoothness * 32, mode="reflect", truncate=3) * amplitude * 32
                for field in noise[number]
            )
            image = torch.tensor(sampled(image, columns + right, rows + down, "reflect"))
        np.testing.assert_allclose(y[number], image, atol=5e-5)


@pytest.mark.parametrize(("table", "channels"), [("cifar", 1), ("imagenet", 3)])
def test_an_image_counts_alone(channels: int, table: TableName) -> None:
    assert_image_counts_alone("elastic_transform", elastic_transform, table, channels)

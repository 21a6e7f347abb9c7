from __future__ import annotations

import pytest
import torch

from pl_robust.transforms._corruptions.fog import fog
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
def test_it_is_the_oracles_fog_of_the_same_numbers(kind: str, severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = cut(kind, severity)
    side = 512 if kind == "wide" else 256
    seeds = torch.tensor([severity])
    y = fog(batch_of(image), SampleRandom(seeds, STREAM), *TABLES["fog"]["imagenet"][severity - 1])
    # The first number would be the first corner's, which is 0.
    Scripted(monkeypatch, uniform=SampleRandom(seeds, STREAM).uniform(side**2)[0, 1:])
    difference = levels_above(y, oracle("fog", image, severity, 0))
    assert difference.min() > -0.01
    assert difference.max() < 1.01


def test_black_stays_black_and_images_keep_to_their_maximum() -> None:
    x = torch.rand(3, 3, 20, 33) * torch.tensor([0.0, 0.4, 1.0])[:, None, None, None]
    y = fog(x, SampleRandom(torch.arange(3), 0), 1.5, 2.0)
    assert y[0].abs().max() == 0
    for image, foggy in zip(x[1:], y[1:], strict=True):
        assert foggy.min() >= 0
        assert 0.5 * image.max() < foggy.max() <= image.max() * (1 + 1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("table", ["cifar", "imagenet"])
def test_an_image_counts_alone(table: TableName, channels: int) -> None:
    assert_image_counts_alone("fog", fog, table, channels)

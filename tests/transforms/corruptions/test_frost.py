from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pl_robust.transforms._corruptions import frost as module
from pl_robust.transforms._corruptions.frost import frost
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from tests.transforms.corruptions.oracle import oracle, photos, psnr, to_batch
from tests.transforms.corruptions.weather import (
    STREAM,
    Scripted,
    assert_image_counts_alone,
    batch_of,
    cut,
    levels_above,
)


def published(backwards: bool = False) -> tuple[Tensor, ...]:
    """The package's own photos, the first five of its six; backwards: their colours from blue to red."""
    spec = importlib.util.find_spec("imagecorruptions")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    files = [folder / f"frost{number}.{'png' if number < 4 else 'jpg'}" for number in range(1, 6)]
    read = (torch.tensor(np.asarray(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files)
    return tuple(photo.flip(0) if backwards else photo for photo in read)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Keep no other test's photos, and none for the tests that come."""
    original = module._photos
    yield
    original.cache_clear()
    module._resized.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, read: tuple[Tensor, ...]) -> None:
    module._resized.cache_clear()
    monkeypatch.setattr(module, "_photos", lambda: read)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["square", "wide", "gray"])
def test_it_is_the_oracles_frost_of_the_same_numbers(kind: str, severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = cut(kind, severity)
    # In gray images the package takes its photos' channels in the wrong order.
    use(monkeypatch, published(backwards=kind == "gray"))
    for seed in range(2):
        seeds = torch.tensor([seed])
        y = frost(batch_of(image), SampleRandom(seeds, STREAM), *TABLES["frost"]["imagenet"][severity - 1])
        random = SampleRandom(seeds, STREAM)
        Scripted(monkeypatch, uniform=torch.cat([random.uniform(), random.uniform(), random.uniform()]))
        difference = levels_above(y, oracle("frost", image, severity, 0))
        assert difference.min() > -1  # cv2 resizes in whole numbers, which may round the other way
        assert difference.max() < 2
        assert ((difference > -0.01) & (difference < 1.01)).mean() > 0.995


def test_photos_are_enlarged_where_the_image_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.asarray(Image.fromarray(photos()[0]).resize((640, 400)))  # wider than three of the photos
    use(monkeypatch, published())
    for seed in range(2):
        seeds = torch.tensor([seed])
        y = frost(batch_of(image), SampleRandom(seeds, STREAM), *TABLES["frost"]["imagenet"][2])
        random = SampleRandom(seeds, STREAM)
        Scripted(monkeypatch, uniform=torch.cat([random.uniform(), random.uniform(), random.uniform()]))
        difference = levels_above(y, oracle("frost", image, 3, 0))
        assert ((difference > -0.01) & (difference < 1.01)).mean() > 0.98


@pytest.mark.parametrize("factor", [0.2, 0.3, 1.1, 1.7])
def test_resizing_is_cv2s(factor: float) -> None:
    for photo in module._photos():
        image = photo.permute(1, 2, 0).numpy()
        if factor > 1:
            size = tuple(int(np.ceil(factor * side)) for side in image.shape[1::-1])
            truth = cv2.resize(image, dsize=size, interpolation=cv2.INTER_CUBIC)
        else:
            truth = cv2.resize(image, dsize=(0, 0), fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        ours = module._resize(photo, factor).permute(1, 2, 0).numpy()
        rows, columns = (min(pair) for pair in zip(ours.shape[:2], truth.shape[:2], strict=True))
        assert max(np.subtract(ours.shape, truth.shape)) <= 0  # rounded down, to the nearest there
        assert min(np.subtract(ours.shape, truth.shape)) >= -1
        difference = np.abs(ours[:rows, :columns].astype(float) - truth[:rows, :columns])
        assert difference.max() <= 1
        assert difference.mean() < 0.2


def test_the_photos_are_the_published_ones() -> None:
    for ours, theirs in zip(module._photos(), published(), strict=True):
        assert psnr(ours.float() / 255, theirs.float() / 255) > 30  # two are JPEG here and PNG there


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_the_photos_files_do_not_matter(severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = to_batch(photos()).repeat(5, 1, 1, 1)
    results = []
    for read in (module._photos(), published()):
        use(monkeypatch, read)
        y = frost(x, SampleRandom(torch.arange(len(x)), STREAM), *TABLES["frost"]["imagenet"][severity - 1])
        results.append(statistics.median(psnr(*pair) for pair in zip(x, y.clamp(0, 1), strict=True)))
    assert results[0] == pytest.approx(results[1], abs=0.02)


def test_photos_and_places_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    # Photos that say where each of their points lies.
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(240), indexing="ij")
    use(monkeypatch, tuple(torch.stack((rows, columns, torch.full_like(rows, i))).byte() for i in range(5)))
    y = frost(torch.zeros(5000, 3, 16, 16), SampleRandom(torch.arange(5000), STREAM), 1, 255.0, 1.0)[:, :, 0, 0].round()
    counts = y[:, 2].int().bincount()
    assert len(counts) == 5
    assert (counts - 1000).abs().max() < 4 * (5000 * 0.2 * 0.8) ** 0.5
    for place, size in ((y[:, 0], 200), (y[:, 1], 240)):
        room = size - 16
        assert place.min() == 0
        assert place.max() == room - 1  # as published, the last place of all never comes
        assert abs(place.mean() - (room - 1) / 2) < 4 * room / (12 * 5000) ** 0.5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("table", ["cifar", "tiny_imagenet", "imagenet"])
def test_an_image_counts_alone(table: TableName, channels: int) -> None:
    assert_image_counts_alone("frost", frost, table, channels)


def test_a_missing_package_and_a_missing_photo_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("torch_uncertainty_assets")
    assert spec is not None
    assert spec.origin is not None
    module._photos.cache_clear()
    for name in [name for name in sys.modules if name.startswith("torch_uncertainty_assets")]:
        monkeypatch.delitem(sys.modules, name)
    draw = (torch.zeros(1, 3, 16, 16), SampleRandom(torch.zeros(1, dtype=torch.int64), 0), 1, 0.4, 1.1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_uncertainty_assets", None)
        with pytest.raises(ModuleNotFoundError, match="not installed: pip install torch-uncertainty-assets"):
            frost(*draw)
    shutil.copytree(Path(spec.origin).parent, tmp_path / "torch_uncertainty_assets")
    (tmp_path / "torch_uncertainty_assets" / "frost" / "frost3.jpg").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"frost3\.jpg .*torch_uncertainty_assets.*: pip install --force"):
        frost(*draw)

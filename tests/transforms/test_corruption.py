from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pl_robust.transforms import CORRUPTIONS, EXTRA_CORRUPTIONS, Corruption, corrupt
from pl_robust.transforms._corruptions.tables import TABLES, TableName
from pl_robust.transforms._sample_random import SampleRandom
from pl_robust.transforms.corruption import _EFFECTS
from tests.transforms.corruptions.oracle import oracle, photos, psnr, to_batch

NAMES = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
TABLE_NAMES = get_args(TableName)
DETERMINISTIC = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}
# The bands: how far the median PSNR may lie from the oracle's, in dB.
WIDE = {"fog", "frost", "snow", "motion_blur", "elastic_transform", "glass_blur", "spatter", "saturate"}
# The oracle takes a second for each image of the first, a tenth for each of the second.
PHOTOS = {"glass_blur": 1, "zoom_blur": 2}
SEEDS = {"frost": 6, "fog": 20, "snow": 2, "spatter": 3, "motion_blur": 2}


def images(*shape: int, levels: bool = True) -> Tensor:
    x = torch.rand(*(shape or (8, 3, 21, 19)), generator=torch.Generator().manual_seed(1))
    return (x * 255).round() / 255 if levels else x


def seeds_for(x: Tensor) -> Tensor:
    return torch.arange(len(x)) * 7919 + 3


@cache
def median_psnrs(name: str) -> tuple[tuple[float, float], ...]:
    """The median PSNR of ours and of the oracle, for each severity."""
    chosen = photos()[: PHOTOS.get(name, 6)]
    repeats = SEEDS.get(name, 1)
    x = to_batch(chosen).repeat(repeats, 1, 1, 1)
    pairs = []
    for severity in range(1, 6):
        y = corrupt(x, name, severity, seeds=seeds_for(x))
        ours = statistics.median(psnr(*pair) for pair in zip(x, y, strict=True))
        theirs = statistics.median(
            psnr(photo, oracle(name, photo, severity, seed)) for seed, photo in enumerate(chosen * repeats)
        )
        pairs.append((ours, theirs))
    return tuple(pairs)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_that_of_imagecorruptions(name: str, severity: int) -> None:
    ours, theirs = median_psnrs(name)[severity - 1]
    assert ours == pytest.approx(theirs, abs=1.5 if name in WIDE else 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_damage_grows_with_severity_where_the_oracles_does(name: str) -> None:
    pairs = median_psnrs(name)
    for (milder, oracle_milder), (harder, oracle_harder) in pairwise(pairs):
        if oracle_harder < oracle_milder - 0.3:  # else the medians of a few photos do not tell
            assert harder < milder


@pytest.mark.parametrize("table", TABLE_NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_gets_the_same_bits_in_any_batch_and_on_any_number_of_threads(name: str, table: TableName) -> None:
    x = images(8, 3, 41, 43, levels=False)  # more values than one thread takes; sides that fill no vector
    seeds = seeds_for(x)
    whole = corrupt(x, name, 5, table=table, seeds=seeds)
    order = torch.tensor([5, 2, 7])
    assert torch.equal(corrupt(x[order], name, 5, table=table, seeds=seeds[order]), whole[order])
    for image in (0, 7):
        alone = corrupt(x[image : image + 1], name, 5, table=table, seeds=seeds[image : image + 1])
        assert torch.equal(alone[0], whole[image])
    torch.set_num_threads(2)
    try:
        assert torch.equal(corrupt(x, name, 5, table=table, seeds=seeds), whole)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", NAMES)
def test_a_large_image_gets_the_same_bits_beside_others(name: str) -> None:
    x = to_batch(photos()[:2])
    seeds = seeds_for(x)
    whole = corrupt(x, name, 3, seeds=seeds)
    torch.set_num_threads(2)
    try:
        assert torch.equal(corrupt(x[1:2], name, 3, seeds=seeds[1:2])[0], whole[1])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", NAMES)
def test_gray_images_too(name: str) -> None:
    x = images(4, 1, 24, 33)
    seeds = seeds_for(x)
    for severity in (1, 5):
        y = corrupt(x, name, severity, table="cifar", seeds=seeds)
        assert_images(y, x)
        assert torch.equal(corrupt(x[2:3], name, severity, table="cifar", seeds=seeds[2:3])[0], y[2])


@pytest.mark.parametrize("table", TABLE_NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_results_are_levels_of_new_images_of_any_size(name: str, table: TableName) -> None:
    for shape in ((2, 3, 16, 16), (2, 3, 32, 32), (2, 1, 16, 45), (2, 3, 45, 16)):
        x = images(*shape, levels=False)
        before = x.clone()
        for severity in range(1, 6):
            assert_images(corrupt(x, name, severity, table=table), x)
        assert torch.equal(x, before)
    assert corrupt(images(0, 3, 16, 16), name, 1, table=table).shape == (0, 3, 16, 16)


def assert_images(y: Tensor, x: Tensor) -> None:
    assert y.shape == x.shape
    levels = y.double() * 255
    assert torch.equal(y, (levels.round() / 255).float())  # as read back from uint8
    assert levels.min() >= 0
    assert levels.max() <= 255.001


@pytest.mark.parametrize("name", NAMES)
def test_dtype_memory_and_context_change_nothing(name: str) -> None:
    x = images(4, 3, 20, 24)
    seeds = seeds_for(x)
    with torch.inference_mode():  # first: what it keeps must serve later
        first = corrupt(x, name, 3, seeds=seeds)
    y = corrupt(x, name, 3, seeds=seeds)
    assert torch.equal(first, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(corrupt(x, name, 3, seeds=seeds), y)
    wide = torch.stack((x, x), 4)[..., 0]
    for same in (x.to(memory_format=torch.channels_last), wide, x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert not same.is_contiguous()
        assert torch.equal(corrupt(same, name, 3, seeds=seeds), y)
    assert torch.equal(corrupt(x.clone().requires_grad_(), name, 3, seeds=seeds), y)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cast = corrupt(x.to(dtype), name, 3, seeds=seeds)
        assert cast.dtype == dtype
        assert torch.equal(cast, corrupt(x.to(dtype).float(), name, 3, seeds=seeds).to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_the_only_randomness(name: str) -> None:
    x = images(1, 3, 32, 32).repeat(4, 1, 1, 1)
    seeds = torch.tensor([1, 2, 1, 2**40 + 1])
    before = torch.get_rng_state()
    y = corrupt(x, name, 4, seeds=seeds)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(y[0], y[2])
    for other in (1, 3):
        assert torch.equal(y[0], y[other]) == (name in DETERMINISTIC)
    drawn = [Corruption(name, 4)(x, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2]) == (name in DETERMINISTIC)
    torch.manual_seed(5)
    first = corrupt(x, name, 4)
    torch.manual_seed(5)
    assert torch.equal(corrupt(x, name, 4), first)


@pytest.fixture
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow  # torch loads its decompositions for the meta device
@pytest.mark.usefixtures("_environment_kept")  # and sets a variable
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device_or_leaves_it(name: str, channels: int) -> None:
    # The meta device has no values: asking for one raises, as mixing devices does.
    x = torch.empty(2, channels, 32, 40, device="meta")
    seeds = torch.zeros(2, dtype=torch.int64, device="meta")
    for constants in TABLES[name]["tiny_imagenet"]:
        if name == "jpeg_compression":  # the one with a codec on the CPU
            with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
                _EFFECTS[name](x, SampleRandom(seeds, 0), *constants)
        else:
            y = _EFFECTS[name](x, SampleRandom(seeds, 0), *constants)
            assert y.shape == x.shape
            assert y.device == x.device


def test_severities_and_corruptions_draw_numbers_of_their_own() -> None:
    x = torch.full((1, 3, 32, 32), 0.5)
    seeds = torch.tensor([3])
    noises = [
        (corrupt(x, name, severity, seeds=seeds) - 0.5).flatten()
        for name in ("gaussian_noise", "speckle_noise")
        for severity in (1, 2)
    ]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(4)
    assert correlation.abs().max() < 0.1


def test_the_names_are_the_benchmarks_and_every_one_has_its_tables() -> None:
    assert len(CORRUPTIONS) == 15
    assert CORRUPTIONS[:4] == ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur")
    assert CORRUPTIONS[-1] == "jpeg_compression"
    assert set(NAMES) == set(TABLES)
    for tables in TABLES.values():
        assert set(tables) == set(TABLE_NAMES)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("gaussian_noise", [158, 0, 70, 29, 190, 92, 0, 193]),
        ("shot_noise", [85, 0, 170, 170, 170, 0, 0, 0]),
        ("impulse_noise", [128, 128, 128, 128, 128, 128, 128, 128]),
        ("speckle_noise", [199, 158, 192, 239, 53, 87, 39, 114]),
    ],
)
def test_stored_noise_can_be_made_again(name: str, levels: list[int]) -> None:
    # A corruption added later must not move the others' numbers: images in memory would no longer be those on disk.
    y = corrupt(torch.full((1, 1, 16, 16), 128 / 255), name, 5, seeds=torch.tensor([42]))
    assert (y[0, 0, 0, :8] * 255).round().int().tolist() == levels


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Corruption("rain", 3), ValueError, "`name` must be one of gaussian_noise, .*, saturate, got 'rain'"),
        (lambda: Corruption("fog", 0), ValueError, "`severity` must be from 1 to 5, got 0"),
        (lambda: Corruption("fog", 6), ValueError, "`severity` must be from 1 to 5, got 6"),
        (lambda: Corruption("fog", True), TypeError, "`severity` must be an integer from 1 to 5, got True"),
        (lambda: Corruption("fog", 2.0), TypeError, "`severity` must be an integer from 1 to 5, got 2.0"),  # type: ignore[arg-type]
        (lambda: Corruption("fog", 2, "mnist"), ValueError, "`table` must be one of cifar, .*, got 'mnist'"),  # type: ignore[arg-type]
        (lambda: corrupt(images(), "fog", 9), ValueError, "`severity` must be from 1 to 5, got 9"),
        (lambda: corrupt(images().byte(), "fog", 1), TypeError, "got torch.uint8; divide uint8 images by 255"),
        (lambda: corrupt(images()[0], "fog", 1), ValueError, r"must be a batch \[B, C, H, W\], got shape \[3, 21, 19"),
        (lambda: corrupt(images(2, 4, 16, 16), "fog", 1), ValueError, r"1 or 3 channels, got shape \[2, 4, 16, 16\]"),
        (lambda: corrupt(images(2, 3, 16, 15), "fog", 1), ValueError, r"at least 16 pixels, got shape \[2, 3, 16, 15"),
        (
            lambda: corrupt(images(), "fog", 1, seeds=torch.zeros(7, dtype=torch.int64)),
            ValueError,
            r"`seeds` must have shape \[8\], one seed for each image of the batch, got \[7\]",
        ),
        (lambda: corrupt(images(), "fog", 1, seeds=torch.zeros(8)), TypeError, "`seeds` must be an int64 tensor"),
        (lambda: corrupt(images(), "fog", 1, seeds=list(range(8))), TypeError, "`seeds` must be an int64 .* got list"),  # type: ignore[arg-type]
        (
            lambda: corrupt(images(), "fog", 1, seeds=torch.arange(8), generator=torch.Generator()),
            ValueError,
            "give `seeds` or `generator`, not both",
        ),
    ],
)
def test_errors_speak(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_comes_close(name: str) -> None:
    x = torch.cat((to_batch(photos()[:2]), images(2, 3, 224, 224)))
    seeds = seeds_for(x)
    host = corrupt(x, name, 3, seeds=seeds)
    device = corrupt(x.cuda(), name, 3, seeds=seeds)
    assert device.is_cuda
    levels = (device.cpu() - host).abs() * 255
    assert levels.mean() < 0.05
    assert (levels > 1.5).float().mean() < 1e-3
    assert torch.equal((device * 255).round().byte().cpu().float() / 255, device.cpu())


@pytest.mark.parametrize("name", [*CORRUPTIONS, *EXTRA_CORRUPTIONS])
def test_the_default_dtype_changes_nothing(name: str) -> None:
    x, seeds = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    expected = corrupt(x, name, 3, table="cifar", seeds=seeds)
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            assert torch.equal(corrupt(x, name, 3, table="cifar", seeds=seeds), expected)
            assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pl_robust.datamodules import CorruptedImageDataModule
from pl_robust.datamodules._corruption_arrays import ArraySlice, CorruptionArrays
from pl_robust.datamodules._image_dataset import collate_images
from tests.datamodules.corruption_toys import COUNT, NAMES, pixel, write_arrays

pytestmark = pytest.mark.lightning


def _suite(folder: Path, **arguments: Any) -> dict[str, Any]:
    data = CorruptedImageDataModule(data_dir=folder, **{"corruptions": list(NAMES), **arguments})
    data.setup("test")
    sets = data.test_dataloader()
    names = [f"{name}/{severity}" for name in data.corruptions for severity in data.severities]
    return sets if isinstance(sets, dict) else dict(zip(names, sets, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_name_and_severity_is_its_slice(channels: int, tmp_path: Path) -> None:
    suite = _suite(write_arrays(tmp_path / "c", channels=channels), batch_size=4)
    assert list(suite) == [f"{name}/{severity}" for name in NAMES for severity in range(1, 6)]
    for key, loader in suite.items():
        name, severity = key.split("/")
        x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
        assert x.shape == (COUNT, channels, 6, 4)
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        expected = torch.tensor([pixel(name, int(severity), index) for index in range(COUNT)])
        assert torch.equal(x, (expected.float() / 255)[:, None, None, None].expand_as(x))
        assert torch.equal(y, torch.arange(COUNT) % 3)


def test_channels_come_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 6, 4, 3), dtype=np.uint8)
    suite = _suite(write_arrays(tmp_path / "c", fog=pixels), corruptions=["fog"], severities=[5])
    ((x, _),) = suite["fog/5"]
    assert torch.equal(x[8, 1], torch.from_numpy(pixels[44, :, :, 1]).float() / 255)


def test_a_choice_of_severities_and_names_in_its_order(tmp_path: Path) -> None:
    suite = _suite(write_arrays(tmp_path / "c"), corruptions=["gaussian_noise"], severities=[5, 2])
    assert list(suite) == ["gaussian_noise/5", "gaussian_noise/2"]
    ((x, _),) = suite["gaussian_noise/2"]
    assert x[0, 0, 0, 0] == torch.tensor(pixel("gaussian_noise", 2, 0)) / 255


def test_any_order_of_indices_and_single_samples(tmp_path: Path) -> None:
    arrays = CorruptionArrays(write_arrays(tmp_path / "c"), NAMES, (1,))
    data = arrays.dataset("gaussian_noise", 3)
    x, y = data.__getitems__([8, 0, 8])
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [pixel("gaussian_noise", 3, index) for index in (8, 0, 8)]
    assert y.tolist() == [2, 0, 2]
    assert torch.equal(data[8][0], x[0])
    assert len(data) == COUNT


def test_nothing_of_a_file_is_held_in_memory_or_pickled(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "c", fog=np.zeros((45, 100, 100, 3), dtype=np.uint8)) / "fog.npy"
    part = ArraySlice(path, 0)
    part.read([0, 44])
    assert isinstance(part._array, np.memmap)
    sent = pickle.dumps(part)
    assert len(sent) < 1000 < path.stat().st_size
    assert torch.equal(pickle.loads(sent).read([3]), part.read([3]))  # noqa: S301  # our own bytes


def test_a_file_larger_than_memory_should_be_can_be_read(tmp_path: Path) -> None:
    count, folder = 70_000, tmp_path / "c"
    write_arrays(folder, names=("fog",), labels=np.zeros(5 * count, dtype=np.uint8))
    # A gigabyte of zeros that takes no disk, but would take memory.
    big = np.lib.format.open_memmap(folder / "fog.npy", mode="w+", dtype=np.uint8, shape=(5 * count, 32, 32, 3))
    big[-1] = 255
    del big

    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * 4096

    before = resident()
    suite = _suite(folder, corruptions=["fog"], batch_size=1000)
    ends = [next(iter(loader)) for loader in suite.values()]
    last = suite["fog/5"].dataset[count - 1]
    assert resident() - before < 2**28
    assert all(not x.any() for x, _ in ends)
    assert last[0].min() == 1


@pytest.mark.slow  # torch takes seconds to start workers and give them up
def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    data = CorruptionArrays(write_arrays(tmp_path / "c"), NAMES, (1,)).dataset("gaussian_noise", 4)
    alone, together = (
        [x for x, _ in DataLoader(data, 4, num_workers=workers, collate_fn=collate_images)] for workers in (0, 2)
    )
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type(dtype: Any, tmp_path: Path) -> None:
    labels = np.tile(np.arange(COUNT) % 7, 5).astype(dtype)
    data = CorruptedImageDataModule(data_dir=write_arrays(tmp_path / "c", labels=labels), corruptions=["fog"])
    assert data.num_classes == 7  # before setup
    assert data.image_shape == (3, 6, 4)


LABELS = np.tile(np.arange(COUNT) % 3, 5)
IMAGES = np.zeros((45, 6, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": LABELS[:-1]}, r"labels.npy must hold integers \[5 \* n\].*got int64 \[44\]"),
        ({"labels": LABELS.astype(float)}, r"labels.npy must hold integers.*got float64 \[45\]"),
        ({"labels": LABELS[:, None]}, r"labels.npy must hold integers.*got int64 \[45, 1\]"),
        ({"labels": LABELS[:0]}, r"labels.npy must hold integers.*got int64 \[0\]"),
        ({"labels": LABELS - 1}, r"labels.npy must hold labels from 0 on, got -1"),
        (
            {"labels": np.arange(45) % 4},
            r"labels.npy must hold the same labels for each severity, 9 at a time, but those of severity 2 differ",
        ),
        ({"labels": np.tile(np.arange(8), 5)}, r"fog.npy must hold 40 images, as many as labels.npy has.*got 45"),
        ({"gaussian_noise": IMAGES[:36]}, r"gaussian_noise.npy must hold 45 images, as many as .*, got 36"),
        ({"gaussian_noise": IMAGES.astype(np.float32)}, r"gaussian_noise.npy must hold uint8 images .*got float32"),
        (
            {"gaussian_noise": IMAGES.transpose(0, 3, 1, 2)},
            r"uint8 images \[5 \* n, H, W, 1 or 3\], got uint8 \[45, 3, 6, 4",
        ),
        (
            {"gaussian_noise": IMAGES[:, :5]},
            r"gaussian_noise.npy must hold images 6x4x3, as fog.npy does, got \[45, 5,",
        ),
    ],
)
def test_refuses_files_that_are_not_as_described(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "c", **changed)
    with pytest.raises(ValueError, match=message) as caught:
        _suite(folder)
    assert str(folder) in str(caught.value)


def test_names_missing_files(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match=r"c/snow.npy is missing, .*/c holds fog, gaussian_noise"):
        _suite(folder, corruptions=["fog", "snow"])
    (folder / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"c/labels.npy is missing: the labels of all images"):
        _suite(folder)


def test_refuses_damaged_files_and_pickles(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "c")
    content = (folder / "fog.npy").read_bytes()
    for damaged in (content[:-1], content[:20], b"", b"spoilt" * 100):
        (folder / "fog.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c/fog.npy is no complete .npy file of numbers: "):
            _suite(folder)
    np.save(folder / "fog.npy", np.array([{"a": 1}] * 45, dtype=object))
    with pytest.raises(ValueError, match=r"c/fog.npy is no complete .npy file of numbers: "):
        _suite(folder)


def test_refuses_labels_that_the_clean_data_has_not(tmp_path: Path) -> None:
    arrays = CorruptionArrays(write_arrays(tmp_path / "c"), NAMES, (1,))
    arrays.check(3)
    arrays.check(None)
    with pytest.raises(
        ValueError, match=r"labels.npy must hold labels 0 to 1, for the clean data has 2 classes, got 2"
    ):
        arrays.check(2)

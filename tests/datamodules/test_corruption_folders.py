from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pl_robust.datamodules import CorruptedImageDataModule, ImageDataModule, LowPassDataModule
from tests.datamodules.corruption_toys import COUNT, NAMES, pixel, write_folders
from tests.datamodules.toys import Base

pytestmark = pytest.mark.lightning


def _module(folder: Path, **arguments: Any) -> CorruptedImageDataModule:
    return CorruptedImageDataModule(data_dir=folder, **{"corruptions": list(NAMES), **arguments})


def _suite(folder: Path, **arguments: Any) -> dict[str, Any]:
    data = _module(folder, **arguments)
    data.setup("test")
    sets = data.test_dataloader()
    names = [f"{name}/{severity}" for name in data.corruptions for severity in data.severities]
    return sets if isinstance(sets, dict) else dict(zip(names, sets, strict=True))


def _clean(root: Path, classes: tuple[str, ...]) -> ImageDataModule:
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((6, 4, 3), dtype=np.uint8)).save(root / split / name / "0.png")
    return ImageDataModule("imagefolder", data_dir=root)


@pytest.mark.parametrize("group", ["", "noise"])  # Tiny-ImageNet-C, ImageNet-C
def test_each_name_severity_and_class_is_its_folder(group: str, tmp_path: Path) -> None:
    suite = _suite(write_folders(tmp_path / "c", group), batch_size=4)
    assert list(suite) == [f"{name}/{severity}" for name in NAMES for severity in range(1, 6)]
    for key, loader in suite.items():
        name, severity = key.split("/")
        x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
        order = [index for label in range(3) for index in range(label, COUNT, 3)]
        expected = torch.tensor([pixel(name, int(severity), index) for index in order])
        assert x.shape == (COUNT, 3, 6, 4)
        assert torch.equal(x, (expected.float() / 255)[:, None, None, None].expand_as(x))
        assert y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_tells_classes_and_shape_before_setup(tmp_path: Path) -> None:
    data = _module(write_folders(tmp_path / "c"))
    assert data.num_classes == 3
    assert data.image_shape == (3, 6, 4)


def test_classes_are_numbered_as_in_the_clean_data(tmp_path: Path) -> None:
    """Not by their order in the suite: folder names sort the same, so a class that is missing must not shift others."""
    base = _clean(tmp_path / "clean", ("ant", "bee", "cow"))
    folder = write_folders(tmp_path / "c", classes=("ant", "bee", "cow"))
    for around in (base, LowPassDataModule(base, 2)):
        suite = _suite(folder, base=around, clean=False)
        assert torch.cat([y for _, y in suite["fog/1"]]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    fewer = write_folders(tmp_path / "fewer", classes=("ant", "cow"))
    with pytest.raises(ValueError, match=r"fewer/fog/1 must have 3 class folders, as many as the clean data"):
        _suite(fewer, base=Base3(), clean=False)
    with pytest.raises(FileNotFoundError, match=r"fewer/fog/1/bee is missing: a folder with the images of class 'bee'"):
        _suite(fewer, base=base, clean=False)
    more = write_folders(tmp_path / "more", classes=("ant", "bat", "bee", "cow"))
    with pytest.raises(ValueError, match=r"more/fog/1 has classes that are not expected there: bat"):
        _suite(more, base=base, clean=False)


class Base3(Base):
    num_classes = 3


def test_names_what_is_missing(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "c", "noise")
    with pytest.raises(
        FileNotFoundError, match=r"/c has neither snow.npy nor a folder snow/<severity>/<class>/.*holds noise"
    ):
        _suite(folder, corruptions=["snow"])
    shutil.rmtree(folder / "noise" / "fog" / "4")
    with pytest.raises(FileNotFoundError, match=r"noise/fog/4 is missing; .*noise/fog holds 1, 2, 3, 5"):
        _suite(folder)
    assert list(_suite(folder, severities=[5, 1]))[:2] == ["fog/5", "fog/1"]  # nobody asks for it
    with pytest.raises(FileNotFoundError, match=r"`data_dir`='.*nowhere' is no folder; .* such as CIFAR-10-C"):
        _suite(tmp_path / "nowhere")


def test_refuses_parts_that_differ(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "c")
    part = folder / "gaussian_noise" / "2"
    lost = part / "bee" / "4.JPEG"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"gaussian_noise/2 must hold the images that .*fog/1 holds, but bee/4.JPEG is missing"
    ):
        _suite(folder)
    lost.write_bytes(content)
    (part / "ant" / "99.jpeg").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"fog/1 holds, but ant/99.jpeg is not there"):
        _suite(folder)
    (part / "ant" / "99.jpeg").rename(part / "ant" / "99.txt")  # no image: nothing to complain about
    assert len(_suite(folder)) == 10
    (part / "dog").mkdir()
    with pytest.raises(ValueError, match=r"gaussian_noise/2 has classes that are not expected there: dog"):
        _suite(folder)
    (part / "dog").rmdir()
    for file in (part / "cow").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"gaussian_noise/2/cow must hold images, .jpg.*and holds none"):
        _suite(folder)


def test_refuses_a_corruption_in_two_places(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "c")
    write_folders(folder, "weather", names=("fog",))
    with pytest.raises(ValueError, match=r"fog must be in one place, got .*/c/fog and .*/c/weather/fog"):
        _suite(folder)


def test_refuses_an_image_of_another_size(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "c")
    Image.fromarray(np.zeros((5, 4, 3), dtype=np.uint8)).save(folder / "fog" / "2" / "cow" / "5.JPEG", "PNG")
    suite = _suite(folder)
    with pytest.raises(ValueError, match=r"cow/5.JPEG must have the size of the first image, \(6, 4\), got \(5, 4\)"):
        list(suite["fog/2"])


def test_gray_files_become_three_channels(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "c")
    Image.fromarray(np.full((6, 4), 77, dtype=np.uint8)).save(folder / "fog" / "1" / "ant" / "0.JPEG", "PNG")
    x, _ = next(iter(_suite(folder)["fog/1"]))
    assert (x[0] == 77 / torch.tensor(255.0)).all()
